"""The play: four acts on real processes with real images, measured as an onlooker would.

Two sites of three nodes. Cameras publish held-out images at the nodes of their site; readings come back on the site's
own topic and arrive at the hub. Then a serving node dies, a site is cut off, and the model is replaced, under load.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batuta.demo.cable import Cable
from batuta.demo.cameras import Camera, Frame, Onlooker, Reading
from batuta.demo.digits import Digits, prepare
from batuta.demo.measured import Measured
from batuta.demo.show import Show
from batuta.demo.stage import Stage, wait_for
from batuta.errors import BatutaError
from batuta.model_push import push

if TYPE_CHECKING:
    from collections.abc import Callable

SITES = {"north": ("north-1", "north-2", "north-3"), "south": ("south-1", "south-2", "south-3")}
CAMERAS_PER_SITE = 3
FRAMES_PER_SECOND = 15.0
CUT_SECONDS = 20.0

MANIFEST = """\
apiVersion: batuta.dev/v1
kind: Application
metadata: {{name: meter-reader}}
spec:
  components:
  - name: read
    model: {{name: digits, version: "{version}"}}
    inputs:  [{{topic: "cameras/+/frame", tensor: image}}]
    outputs: [{{topic: "meters/{{1}}/reading"}}, {{forward: hub}}]
    replicas: {{perSite: 1}}
    resources: {{cpu: 200m, memory: 128Mi}}
    failover: {{after: 2s}}
"""


def run(
    *, as_json: bool = False, keep: bool = False, directory: Path | None = None, picture: Path | None = None
) -> int:
    """Play it all. Returns 0 if every expectation was met, 1 if not; prints the figures as JSON when asked to."""
    scratch = directory or Path(tempfile.mkdtemp(prefix="batuta-demo-"))
    with Show(to_stderr=as_json, picture=picture) as show:
        play = Play(Stage(scratch), show)
        try:
            play.overture()
            play.act_one()
            play.act_two()
            play.act_three()
            play.act_four()
            play.finale()
        except BatutaError as error:
            show.fail(f"{error.message}. {error.next_step}")
            for name in ("hub", *play.stage.nodes):
                show.fail(f"--- {name}: {play.stage.log_tail(name)}")
            return 1
        except KeyboardInterrupt:
            show.say("stopped; nothing is left behind")
            return 130
        else:
            show.table(play.measured.lines())
            show.save()
            if as_json:
                sys.stdout.write(json.dumps(play.measured.document()) + "\n")
                sys.stdout.flush()
            if keep:
                play.encore()
            return 0 if play.measured.kept() else 1
        finally:
            play.close()
            if directory is None:
                shutil.rmtree(scratch, ignore_errors=True)


class Arrivals(threading.Thread):
    """Follows what arrives at the hub: every reading, in order, with the moment at which it was there."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(name="arrivals", daemon=True)
        self.readings: list[Reading] = []
        self._stage = stage
        self._enough = threading.Event()

    def run(self) -> None:
        after = 0
        client = self._stage.another_client()
        while not self._enough.wait(0.05):
            try:
                rows = client.up("normal", after=after, limit=2_000)
            except BatutaError:
                continue  # the next poll asks for the same rows
            now = time.monotonic()
            for row in rows:
                after = int(row["sequence"])
                self.readings.append(_reading(row["payload"], now))

    def ids(self) -> set[str]:
        return {r.id for r in tuple(self.readings)}

    def finish(self) -> None:
        self._enough.set()
        if self.is_alive():
            self.join(10)


class Play:
    """One performance: its processes, its clients, its figures."""

    def __init__(self, stage: Stage, show: Show) -> None:
        self.stage = stage
        self.show = show
        self.measured = Measured()
        self.cameras: list[Camera] = []
        self.panels: dict[str, Onlooker] = {}
        self.arrivals = Arrivals(stage)
        self.cable: Cable | None = None
        self.digits: Digits | None = None

    def overture(self) -> None:
        """Train, start a hub and six nodes, push the model, apply, wait for health."""
        show, stage = self.show, self.stage
        show.act("Overture: a hub, six nodes at two sites, a model trained on real handwriting")
        show.under_way("training on 1,437 images")
        self.digits = prepare(stage.directory / "models")
        show.say(f"trained two versions of a classifier; {len(self.digits.held_out)} images held out for the cameras")
        show.under_way("starting the hub")
        stage.start_hub()
        self.cable = Cable(stage.leaf_address())
        cable_port = self.cable.start()
        show.under_way("joining six nodes")
        for site, names in SITES.items():
            for name in names:
                stage.start_node(name, site, via=cable_port if site == "south" else None)
        for names in SITES.values():
            for name in names:
                wait_for(f"node {name}", lambda name=name: stage.online(name), 40, alive=stage.nodes[name].running)  # type: ignore[misc]
        show.say("six nodes joined, each with its own key: " + ", ".join(n for names in SITES.values() for n in names))
        push(stage.client, self.digits.first, name="digits", version="1", task="classification")
        began = time.monotonic()
        stage.client.apply(MANIFEST.format(version="1"))
        show.under_way("applied; waiting for one healthy reader at each site")
        wait_for("the application", lambda: self._ready(revision=1), 60)
        self.measured.apply_to_healthy_ms = _ms_since(began)
        serving = self._serving()
        who = ", ".join(f"{node} reads at {site}" for site, node in serving.items())
        show.say(f"healthy after {self.measured.apply_to_healthy_ms:,} ms: {who}")

    def act_one(self) -> None:
        """Cameras begin; every held-out image is shown and read."""
        show = self.show
        show.act("Act 1: six cameras show images that no model has seen, over MQTT, at any node of their site")
        assert self.digits is not None
        serving = self._serving()
        images = self.digits.held_out
        for site, names in SITES.items():
            addresses = {name: self.stage.mqtt_of(name) for name in names}
            # The panel hangs at a node that does not serve, so that it outlives the one that does.
            others = [n for n in names if n != serving[site]]
            self.panels[site] = Onlooker(site, [addresses[n] for n in (*others, serving[site])])
            self.panels[site].start()
            for k in range(CAMERAS_PER_SITE):
                mine = [addresses[names[(k + i) % len(names)]] for i in range(len(names))]
                share = images[len(self.cameras) :: CAMERAS_PER_SITE * len(SITES)]
                camera = Camera(f"{site}-cam-{k + 1}", site, mine, itertools.cycle(share), FRAMES_PER_SECOND)
                self.cameras.append(camera)
        self.arrivals.start()
        for camera in self.cameras:
            camera.start()
        wanted = len(images)
        self._until("every held-out image read", lambda: len(self.arrivals.ids()) >= wanted and self._caught_up(), 40)
        show.say(
            f"{len(self.arrivals.ids()):,} readings at the hub; every held-out image has been read; the cameras go on"
        )

    def act_two(self) -> None:
        """The node that serves at the first site dies with its broker."""
        show = self.show
        victim = self._serving()["north"]
        show.act(f"Act 2: {victim}, which reads for site north, is killed -9 with its broker")
        killed_at = time.monotonic()
        count = self.stage.kill_node(victim)
        show.say(f"{count} processes killed without a word")
        first = self._until(
            "a neighbour takes over",
            lambda: next(
                (r for r in tuple(self.panels["north"].readings) if r.at > killed_at and r.node != victim), None
            ),
            30,
        )
        self.measured.failover_ms = round((first.at - killed_at) * 1000)
        moved = sum(c.moves > 0 for c in self.cameras if c.site == "north")
        show.say(
            f"{first.node} answers {self.measured.failover_ms:,} ms later; {moved} camera(s) moved to another node"
        )
        self.stage.restart_node(victim)
        self._until(f"{victim} comes back with what it had stored", lambda: self.stage.online(victim), 40)
        self._until("all caught up", self._caught_up, 40)
        show.say(f"{victim} is back; what it had stored when it died has been read and delivered; nothing moved again")

    def act_three(self) -> None:
        """The second site's uplink is cut."""
        show = self.show
        assert self.cable is not None
        show.act(f"Act 3: the cable of site south is cut for {CUT_SECONDS:.0f} s")
        before = self._serving()
        self.cable.cut()
        cut_at = time.monotonic()
        panel = self.panels["south"]
        while (passed := time.monotonic() - cut_at) < CUT_SECONDS:
            seen = sum(r.at > cut_at for r in tuple(panel.readings))
            show.under_way(f"cut for {passed:.0f} s; the site has read {seen:,} frames by itself")
            time.sleep(0.2)
        # What the hub has by now came through before the cut was complete; the rest must come after.
        already = self.arrivals.ids()
        during = {r.id for r in tuple(panel.readings) if r.at > cut_at} - already
        self.measured.cut_seconds = round(time.monotonic() - cut_at, 1)
        self.cable.mend()
        show.say(f"{len(during):,} readings made at the cut-off site; the cable is mended")
        self._until("all delivered", lambda: during <= self.arrivals.ids(), 60)
        self.measured.readings_during_cut_at_site = len(during)
        self.measured.delivered_after_cut = len(during & self.arrivals.ids())
        self._until("all caught up", self._caught_up, 60)
        show.say(f"{self.measured.delivered_after_cut:,} of them delivered afterwards, each once")
        if (after := self._serving()) != before:
            raise BatutaError(f"the cut should move nothing, but {before} became {after}")

    def act_four(self) -> None:
        """A second version replaces the first under load."""
        show = self.show
        assert self.digits is not None
        show.act("Act 4: version 2 of the model replaces version 1 while the cameras run")
        push(self.stage.client, self.digits.second, name="digits", version="2", task="classification")
        began = time.monotonic()
        self.stage.client.apply(MANIFEST.format(version="2"))
        self._until("both sites on version 2", lambda: self._ready(revision=2), 60)
        took_ms = _ms_since(began)
        ended = time.monotonic()
        swapped = {f.id for f in self._frames() if began <= f.at <= ended}
        self._until("the frames of the swap", lambda: swapped <= self.arrivals.ids(), 30, must=False)
        self.measured.swap_lost = len(swapped - self.arrivals.ids())
        show.say(
            f"replaced at both sites in {took_ms:,} ms, new before old; {len(swapped):,} frames meanwhile, "
            f"{self.measured.swap_lost} of them lost"
        )

    def finale(self) -> None:
        """Stop the cameras, wait for the last reading, add up."""
        rss = self.stage.rss_mb()
        for camera in self.cameras:
            camera.finish()
        frames = {f.id: f for f in self._frames()}
        self._until("the last readings", lambda: frames.keys() <= self.arrivals.ids(), 30, must=False)
        arrived = [r for r in tuple(self.arrivals.readings) if r.id in frames]
        unique = {r.id: r for r in arrived}
        m = self.measured
        m.agent_rss_mb, m.broker_rss_mb, m.hub_rss_mb = rss["agent"], rss["broker"], rss["hub"]
        m.frames_published = len(frames)
        m.readings_received = len(unique)
        m.readings_lost = len(frames) - len(unique)
        m.readings_duplicated = len(arrived) - len(unique)
        m.accuracy = round(sum(r.label == frames[i].label for i, r in unique.items()) / max(1, len(unique)), 4)

    def encore(self) -> None:
        """Leave it running until Ctrl-C, with three things to try."""
        state = self.stage.hub_state
        self.show.say("It goes on running until Ctrl-C. In another terminal, try:")
        for line in ("get nodes", "why meter-reader", "describe application meter-reader"):
            self.show.say(f"  batuta {line} --state {state}")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            self.show.say("stopping; nothing is left behind")

    def close(self) -> None:
        for camera in self.cameras:
            camera.finish()
        for panel in self.panels.values():
            panel.finish()
        self.arrivals.finish()
        self.show.under_way("ending every process")
        killed = self.stage.close()
        if self.cable is not None:
            self.cable.close()
        if killed:
            self.show.fail("had to be killed: " + "; ".join(killed))

    # --- Looking ---

    def _frames(self) -> list[Frame]:
        return [f for c in self.cameras for f in tuple(c.published)]

    def _caught_up(self) -> bool:
        """Every frame published until two seconds ago has its reading at the hub."""
        until = time.monotonic() - 2
        return {f.id for f in self._frames() if f.at < until} <= self.arrivals.ids()

    def _ready(self, revision: int) -> bool | None:
        """One instance of this revision ready at each site, and no other left."""
        instances = self.stage.instances("meter-reader")
        mine = [i for i in instances if f"/read-{revision}-" in i["name"] and i["phase"] == "ready"]
        return True if len(mine) == len(instances) == len(SITES) else None

    def _serving(self) -> dict[str, str]:
        """Which node reads for each site."""
        found = {}
        for instance in self.stage.instances("meter-reader"):
            for site, names in SITES.items():
                if instance["node"] in names and instance["phase"] == "ready":
                    found[site] = str(instance["node"])
        return found

    def _until(self, what: str, ask: Callable[[], Any], seconds: float, *, must: bool = True) -> Any:
        """Wait, showing what for. Raises BatutaError when it does not come, unless it need not."""
        self.show.under_way(what)
        try:
            return wait_for(what, lambda: ask() or None, seconds)
        except BatutaError:
            if must:
                missing = sorted({f.id for f in self._frames()} - self.arrivals.ids())
                raise BatutaError(
                    f"{what}: did not happen within {seconds:.0f} s; {len(missing)} unread: {missing[:5]}"
                ) from None
            return None


def _reading(payload: Any, at: float) -> Reading:
    answer = json.loads(payload) if isinstance(payload, str) else payload
    return Reading(answer["id"], int(answer["value"]), answer["instance"], answer["node"], at)


def _ms_since(began: float) -> int:
    return round((time.monotonic() - began) * 1000)

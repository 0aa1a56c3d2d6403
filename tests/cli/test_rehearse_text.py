"""What a rehearsal says at a terminal and on its page; what its files may hold; and the guide, which is made here."""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from batuta.cli.rehearse_files import faults_in, removal_of, snapshot_of
from batuta.cli.rehearse_page import page
from batuta.cli.rehearse_text import seconds, told
from batuta.cli.twin_rehearse import is_well
from batuta.cli.twin_replay import told as parted
from batuta.core.decide import decide
from batuta.core.state import Change, State
from batuta.errors import BatutaError, NotFound, Refused
from batuta.kinds.base import BitsPerSecond, Millis
from batuta.kinds.node import Power
from batuta.kinds.rolling import Disruption, Rollout
from batuta.kinds.site import Uplink
from batuta.twin.rehearse import Rehearsal, rehearse
from batuta.twin.replay import replay
from batuta.twin.replay_frames import Begin, Frame, There, Turn
from batuta.twin.replay_rows import row_of, rows_of
from tests.core.fleets import NOW, application, component, machines, model, settled, site, state_of

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "rehearsal.md"
HOUR_MS = 3_600_000


def a_fleet() -> State:
    """Three shops with a machine each: a reader at every shop, which runs a model, and a program on every machine.
    There is one place for each, so the figures do not depend on what placement prefers."""
    rows = []
    for shop, mbit in (("berlin", 8), ("paris", 50), ("rome", 50)):
        rows += machines(f"{shop}-1", at=shop)
        uplink = Uplink(bandwidth_bps=BitsPerSecond(mbit * 1_000_000), latency_ms=Millis(25))
        rows.append(site(shop, uplink=uplink))
    reader, helpers = application(component(model="1", per_site=1), name="reader"), application(help_(), name="helper")
    state = settled(state_of(rows, model("1", "2"), reader, helpers))
    changes = []
    for name, node in state.nodes.items():
        power = Power(idle_watts=3.0, full_watts=7.0)
        changes.append(
            Change(
                "desired",
                node.ref.key,
                msgspec.structs.replace(node, spec=msgspec.structs.replace(node.spec, power=power)),
            )
        )
        report = state.observed[name]
        said = tuple(msgspec.structs.replace(i, ready_after_ms=640) for i in report.instances)
        assignment = state.assignments[name]
        held = tuple(sorted({d for i in assignment.instances for d in i.artifacts}))
        changes.append(Change("observed", name, msgspec.structs.replace(report, instances=said, artifacts=held)))
    return state.with_changes(changes)


def help_(**more):
    return component("help", every_node=True, **more)


def a_change() -> list[Change]:
    """The second version of the model, and of the program."""
    reader = application(component(model="2", per_site=1), name="reader")
    return [reader, application(help_(command="other"), name="helper")]


def played(**more) -> Rehearsal:
    return rehearse(a_fleet(), a_change(), NOW, for_ms=HOUR_MS, **more)


# --- At a terminal ---------------------------------------------------------------------------------------------------


def test_the_summary_says_what_moves_and_when_and_what_it_costs() -> None:
    lines = list(told(played()))
    assert re.fullmatch(r"Done after [\d.]+ s: 6 instances would change, and 60 min were looked ahead\.", lines[0])
    text = "\n".join(lines)
    for said in (
        "read-1-berlin-0 → read-2-berlin-0",
        "1.0 MiB of artifacts",
        "8 Mbit/s",
        "nothing that works would ever",
    ):
        assert said in text
    assert (
        "learned a start of helper/help on arm64-4000m takes 640 ms: median of its own starts on this hardware" in text
    )
    assert "assumed" not in text, "links, power and starts are all known"


def test_what_goes_wrong_is_said_with_its_place_and_its_time(tmp_path: Path) -> None:
    faults = tmp_path / "storm.yaml"
    faults.write_text("faults:\n- {fault: crash, at: 1s, for: 2h, site: [berlin]}\n")
    state = a_fleet()
    found = rehearse(state, a_change(), NOW, for_ms=HOUR_MS, faults=faults_in(str(faults), state))
    text = "\n".join(told(found))
    assert text.startswith("Not done within 60 min")
    assert not is_well(found)
    assert "helper/help berlin-1 at berlin: from 1.00 s to the end" in text
    assert "in the end  helper: component/help/berlin-1" in text


def test_a_budget_that_is_breached_is_an_exit_code_and_a_line() -> None:
    app = application(help_(), name="helper")
    spec = msgspec.structs.replace(app.value.spec, rollout=Rollout(disruption=Disruption(per_site=0)))
    state = a_fleet().with_changes([app._replace(value=msgspec.structs.replace(app.value, spec=spec))])
    path = Path(__file__).with_name("none")
    assert not path.exists()
    crash = msgspec.convert(
        {"fault": "crash", "at": "1s", "for": "20s", "site": ["berlin"]}, _fault(), dec_hook=_hook()
    )
    found = rehearse(state, [], NOW, for_ms=HOUR_MS, faults=[crash])
    breached = [b for b in found.changed.budgets if b.breached_ms]
    assert {b.site for b in breached} == {"berlin"}
    assert not is_well(found)
    assert re.search(
        r"budget  helper/help at berlin: \d missing at once, 0 may be: breached for \d+", "\n".join(told(found))
    )


def _fault():
    from batuta.kinds.scenario import Fault

    return Fault


def _hook():
    from batuta.kinds.base import decode_hook

    return decode_hook


@pytest.mark.parametrize(
    ("ms", "said"),
    [(40, "0.04 s"), (9_999, "10.00 s"), (12_400, "12 s"), (303_000, "5 min 3 s"), (600_000, "10 min"),
     (7_200_000, "2 h"), (9_000_000, "2 h 30 min")],
)  # fmt: skip
def test_times_are_short_words(ms: int, said: str) -> None:
    assert seconds(ms) == said


# --- The page --------------------------------------------------------------------------------------------------------


class _Reader(HTMLParser):
    """Checks that every tag is closed and nothing is fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.paths = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "img", "iframe")
        assert not {"src", "href", "onload"} & {name for name, _ in attrs}
        self.paths += tag == "path"
        if tag not in ("meta", "line", "rect", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in ("meta", "line", "rect", "br"):
            self.handle_endtag(tag)


def test_the_page_is_whole_and_needs_no_network() -> None:
    text = page(played())
    reader = _Reader()
    reader.feed(text)
    assert reader.open == []
    assert reader.paths == 6, "three plots of two curves"
    assert "url(" not in text
    assert "http" not in text


def test_no_name_of_somebody_else_becomes_markup() -> None:
    state = a_fleet()
    found = rehearse(state, [application(component("<b>", command="x"), name="evil")], NOW, for_ms=60_000)
    assert "<b>" not in page(found)


# --- Files -----------------------------------------------------------------------------------------------------------


def test_what_a_hub_told_is_read_back(tmp_path: Path) -> None:
    state, [change, _] = a_fleet(), a_change()
    rows = [msgspec.json.decode(msgspec.json.encode(row)) for row in rows_of(state)]
    changes = [msgspec.json.decode(msgspec.json.encode(row_of("desired", change.key, change.value)))]
    taken = snapshot_of({"at": NOW, "hubSince": state.hub_since, "rows": rows, "changes": changes})
    assert taken.state.desired == state.desired
    assert taken.state.held == state.held
    assert taken.changes == (change,)
    with pytest.raises(BatutaError, match="cannot be read"):
        snapshot_of({"at": NOW, "rows": [{"table": "decided", "key": "unheard.of", "value": {}}], "hubSince": 0})
    with pytest.raises(BatutaError, match="cannot be read"):
        snapshot_of({})


def test_faults_are_read_from_a_list_a_mapping_or_a_scenario_and_all_problems_are_told(tmp_path: Path) -> None:
    state, file = a_fleet(), tmp_path / "faults.yaml"
    for text in ("- {fault: hubRestart}", "faults: [{fault: hubRestart}]", "spec: {faults: [{fault: hubRestart}]}"):
        file.write_text(text)
        [fault] = faults_in(str(file), state)
        assert fault.fault == "hubRestart"
    file.write_text("faults:\n- {fault: delay}\n- {fault: crash, node: [berlin-9]}\n- {fault: fire}\n")
    with pytest.raises(Refused) as refused:
        faults_in(str(file), state)
    said = [(p.path, p.message) for p in refused.value.problems]
    assert said[0] == ("faults[0]", "delay needs 'by'")
    assert said[1] == ("faults[1].node[0]", "the fleet has no node 'berlin-9'")
    assert said[2][0] == "faults[2]"
    for text in ("faults: 7", "{", "7"):
        file.write_text(text)
        with pytest.raises(Refused):
            faults_in(str(file), state)
    with pytest.raises(BatutaError, match="cannot be read"):
        faults_in(str(tmp_path / "none.yaml"), state)


# --- The guide -------------------------------------------------------------------------------------------------------


def a_recording() -> list[Frame]:
    """Of a hub with other code: it gave a replica more memory than it was asked for."""
    state = a_fleet()
    [change] = [c for c in a_change() if c.key.endswith("helper")]
    decision = decide(state.with_changes([change]), NOW)
    rows = []
    for row in (row_of(c.table, c.key, c.value) for c in decision.changes):
        value = msgspec.json.decode(row.value)
        for instance in value.get("instances", ()):
            if instance["component"] == "help" and instance["revision"] == 2:
                instance["memory"] = "96Mi"
        rows.append(msgspec.structs.replace(row, value=msgspec.Raw(msgspec.json.encode(value))))
    heard = (row_of(change.table, change.key, change.value),)
    begin = Begin(at=NOW - 1_000, hub_since=state.hub_since, rows=0, version="0.0.9")
    there = [There(row=row) for row in rows_of(state)]
    return [begin, *there, Turn(at=NOW, heard=heard, decided=tuple(rows))]


def _figureless(text: str) -> str:
    """How long an order is, in bytes, changes with every field that one gains: that is no news for the guide."""
    return re.sub(r"[\d.]+ [KM]iB(?= of orders)|(?<=without the change )[\d.]+ [KM]?i?B", "…", text)


def test_the_guide_shows_what_is_really_said() -> None:
    """Each block of output in the guide is made here; BATUTA_REWRITE=1 writes it."""
    state = a_fleet()
    crash = msgspec.convert(
        {"fault": "crash", "at": "1s", "for": "90s", "node": ["berlin-1"]}, _fault(), dec_hook=_hook()
    )
    made = {
        "change": told(rehearse(state, a_change(), NOW, for_ms=HOUR_MS)),
        "faults": told(rehearse(state, a_change(), NOW, for_ms=HOUR_MS, faults=[crash])),
        "replay": parted(replay(a_recording(), differences_max=1)),
    }
    text = GUIDE.read_text("utf-8")
    for name, lines in made.items():
        block = f"<!-- made: {name} -->\n```text\n" + "\n".join(lines) + "\n```"
        pattern = re.compile(rf"<!-- made: {name} -->\n```text\n(?:(?!```).*\n)*```")
        assert pattern.search(text), f"the guide has no block {name!r}"
        text = pattern.sub(lambda _, block=block: block, text)
    if os.environ.get("BATUTA_REWRITE") == "1":
        GUIDE.write_text(text, "utf-8")
    assert _figureless(GUIDE.read_text("utf-8")) == _figureless(text)


def test_what_is_to_be_deleted_is_named_as_delete_names_it() -> None:
    state = a_fleet()
    change = removal_of("application/helper", "default", state)
    assert (change.table, change.key, change.value) == ("desired", "applications.default.helper", None)
    with pytest.raises(NotFound):
        removal_of("application/nobody", "default", state)
    with pytest.raises(Refused):
        removal_of("site/berlin", "default", state)

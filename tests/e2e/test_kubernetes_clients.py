"""Python clients made for Kubernetes, against a real hub over HTTPS with the file of `batuta kubeconfig`."""

from __future__ import annotations

import queue
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import kr8s
import kubernetes
import lightkube
import pytest
from kr8s.objects import new_class
from kubernetes import dynamic
from kubernetes.client.exceptions import ApiException
from lightkube.generic_resource import create_global_resource, create_namespaced_resource
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Node, Pod
from lightkube.types import PatchType

from batuta.demo.stage import Stage, processes_in, wait_for
from tests.cli.running import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

API = "batuta.dev/v1"
MERGE = "application/merge-patch+json"
JSON = "application/json-patch+json"
TALKER = "import time\nprint('hello')\nwhile True:\n    print('again')\n    time.sleep(0.2)\n"


def site(name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": API, "kind": "Site", "metadata": {"name": name, "labels": {"of": name[:2]}}, "spec": spec}


def application(name: str, count: int = 1) -> dict[str, Any]:
    component = {
        "name": "run",
        "process": {"command": [sys.executable, "-u", "-c", TALKER], "stopGrace": "1s"},
        "replicas": {"count": count},
        "resources": {"cpu": "50m", "memory": "32Mi"},
    }
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": API, "kind": "Application", "metadata": metadata, "spec": {"components": [component]}}


class Clients:
    """One kubeconfig, and each client made of it."""

    def __init__(self, stage: Stage, role: str) -> None:
        self.file = stage.directory / f"{role}.kubeconfig"
        made = run("kubeconfig", "--state", str(stage.hub_state), "--role", role, "--out", str(self.file))
        assert made.code == 0, made.err
        self.official = kubernetes.config.new_client_from_config(str(self.file))
        self.core = kubernetes.client.CoreV1Api(self.official)
        self.custom = kubernetes.client.CustomObjectsApi(self.official)
        self.light = lightkube.Client(config=lightkube.KubeConfig.from_file(self.file), field_manager="light")

    @property
    def sites(self) -> Any:
        """The official dynamic client, which finds kinds by itself."""
        found = dynamic.DynamicClient(self.official, cache_file=str(self.file.with_suffix(".kinds")))
        return found.resources.get(api_version=API, kind="Site")

    @property
    def kr8s(self) -> Any:
        return kr8s.api(kubeconfig=str(self.file))


class Following:
    """What an endless iterator gives, taken in a thread of its own."""

    def __init__(self, begin: Callable[[], Iterable[Any]]) -> None:
        self._said: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._take, args=(begin,), daemon=True).start()

    def _take(self, begin: Callable[[], Iterable[Any]]) -> None:
        try:
            for each in begin():
                self._said.put(each)
        except Exception as error:  # raised again where the test looks
            self._said.put(error)

    def until(self, holds: Callable[[Any], bool], seconds: float = 60) -> list[Any]:
        """Everything up to the first for which this holds."""
        seen: list[Any] = []
        while not seen or not holds(seen[-1]):
            try:
                seen.append(self._said.get(timeout=seconds))
            except queue.Empty:
                raise AssertionError(f"nothing that fits within {seconds} s; seen: {seen}") from None
            if isinstance(seen[-1], Exception):
                raise seen[-1]
        return seen


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """A hub and one node for all of these: each test brings its own resources."""
    with tempfile.TemporaryDirectory(prefix="batuta-clients-") as directory:
        made = Stage(Path(directory))
        try:
            made.start_hub()
            made.start_node("pi-1", "berlin")
            wait_for("the node", lambda: made.online("pi-1"), 120)
            yield made
        finally:
            killed = made.close()
        assert killed == []
        assert processes_in(Path(directory)) == []


@pytest.fixture(scope="module")
def clients(stage: Stage) -> Clients:
    return Clients(stage, "admin")


@pytest.fixture(scope="module")
def bookmarking(clients: Clients) -> Following:
    """Begins when the first test does: a bookmark takes its time."""
    watcher = kubernetes.watch.Watch()
    return Following(lambda: clients.sites.watch(timeout=90, allow_watch_bookmarks=True, watcher=watcher))


# --- kubernetes, the official one -------------------------------------------------------------------------------------


def test_official_writes_in_every_way(clients: Clients, bookmarking: Following) -> None:
    sites = clients.sites
    made = sites.create(body=site("of-one", residency="eu"))
    assert made.metadata.generation == 1
    assert sites.get(name="of-one").to_dict() == made.to_dict()
    assert sites.patch(name="of-one", body={"spec": {"residency": "de"}}, content_type=MERGE).spec.residency == "de"
    more = [{"op": "add", "path": "/spec/parent", "value": "berlin"}]
    assert sites.patch(name="of-one", body=more, content_type=JSON).spec.parent == "berlin"
    whole = sites.get(name="of-one").to_dict()
    whole["spec"]["residency"] = "world"
    assert sites.replace(body=whole).spec.residency == "world"
    with pytest.raises(dynamic.exceptions.ConflictError):
        sites.replace(
            body={**whole, "metadata": {**whole["metadata"], "resourceVersion": made.metadata.resourceVersion}}
        )
    assert sites.create(body=site("of-two"), dry_run="All").metadata.name == "of-two"
    assert sites.delete(name="of-one").status == "Success"
    assert [s.metadata.name for s in sites.get(label_selector="of=of").items] == []


def test_official_lists_by_selectors_and_pages(clients: Clients) -> None:
    names = [f"pg-{i}" for i in range(5)]
    for name in names:
        clients.custom.create_cluster_custom_object("batuta.dev", "v1", "sites", site(name))
    seen, after = [], ""
    while True:
        page = clients.custom.list_cluster_custom_object(
            "batuta.dev", "v1", "sites", label_selector="of in (pg)", limit=2, _continue=after
        )
        assert len(page["items"]) <= 2
        seen += [item["metadata"]["name"] for item in page["items"]]
        after = page["metadata"].get("continue", "")
        if not after:
            break
    assert seen == names
    one = clients.sites.get(field_selector="metadata.name=pg-3")
    assert [s.metadata.name for s in one.items] == ["pg-3"]
    with pytest.raises(dynamic.exceptions.BadRequestError, match="cannot be selected by"):
        clients.sites.get(field_selector="spec.colour=red")


def test_official_applies_and_meets_another(clients: Clients) -> None:
    sites = clients.sites
    assert sites.server_side_apply(body=site("ap-one", residency="eu"), field_manager="ann").spec.residency == "eu"
    other = site("ap-one", residency="de")
    with pytest.raises(dynamic.exceptions.ConflictError) as refused:
        sites.server_side_apply(body=other, field_manager="ben")
    assert 'conflict with "ann"' in refused.value.summary()
    taken = sites.server_side_apply(body=other, field_manager="ben", force_conflicts=True)
    assert {entry.manager for entry in taken.metadata.managedFields} == {"ann", "ben"}


def test_official_watches_and_goes_on(clients: Clients) -> None:
    sites = clients.sites
    before = sites.get().metadata.resourceVersion
    watching = Following(lambda: sites.watch(resource_version=before, label_selector="of=wa", timeout=90))
    sites.create(body=site("wa-one"))
    (event,) = watching.until(lambda e: e["object"].metadata.name == "wa-one")
    assert (event["type"], event["raw_object"]["kind"]) == ("ADDED", "Site")
    # Another one goes on where this one is: it sees what comes, and nothing twice.
    here = event["object"].metadata.resourceVersion
    sites.patch(name="wa-one", body={"spec": {"residency": "eu"}}, content_type=MERGE)
    sites.delete(name="wa-one")
    later = Following(lambda: sites.watch(resource_version=here, label_selector="of=wa", timeout=90))
    events = later.until(lambda e: e["type"] == "DELETED")
    assert next(e["type"] for e in events if e["raw_object"].get("spec") == {"residency": "eu"}) == "MODIFIED"
    assert "ADDED" not in {e["type"] for e in events}
    versions = [int(e["object"].metadata.resourceVersion) for e in events]
    assert versions == sorted(set(versions))
    assert versions[0] > int(here)


def test_official_streams_a_list(clients: Clients) -> None:
    """What newer clients do instead of listing: all there is as events, and a bookmark where it ends."""
    named = {s.metadata.name for s in clients.sites.get().items}
    streaming = Following(
        lambda: clients.sites.watch(
            send_initial_events=True, resource_version_match="NotOlderThan", allow_watch_bookmarks=True, timeout=90
        )
    )
    *events, end = streaming.until(lambda e: e["type"] == "BOOKMARK")
    assert {e["object"].metadata.name for e in events} == named
    assert {e["type"] for e in events} == {"ADDED"}
    assert end["raw_object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    clients.sites.create(body=site("st-one"))
    streaming.until(lambda e: e["type"] == "ADDED" and e["object"].metadata.name == "st-one")


def test_official_is_told_when_a_version_is_too_old(clients: Clients) -> None:
    with pytest.raises(dynamic.exceptions.GoneError):
        next(iter(clients.sites.watch(resource_version="1", timeout=5)))
    watch = kubernetes.watch.Watch()
    listing = clients.custom.list_cluster_custom_object
    with pytest.raises(ApiException) as refused:
        next(iter(watch.stream(listing, "batuta.dev", "v1", "sites", resource_version="1", timeout_seconds=5)))
    assert refused.value.status == 410


def test_official_reads_core_objects_as_its_own_types(clients: Clients) -> None:
    (node,) = clients.core.list_node().items
    assert isinstance(node, kubernetes.client.V1Node)
    assert {c.type: c.status for c in node.status.conditions} == {"Ready": "True"}
    namespaces = [n.metadata.name for n in clients.core.list_namespace().items]
    assert "default" in namespaces
    clients.custom.create_namespaced_custom_object("batuta.dev", "v1", "default", "applications", application("typed"))
    try:
        pods = Following(lambda: kubernetes.watch.Watch().stream(clients.core.list_namespaced_pod, "default"))
        ready = pods.until(lambda e: e["object"].metadata.name == "typed.run-1-0" and _is_ready(e["object"]))
        pod = ready[-1]["object"]
        assert isinstance(pod, kubernetes.client.V1Pod)
        assert (pod.spec.node_name, pod.status.container_statuses[0].restart_count) == ("pi-1", 0)
        log = Following(
            lambda: kubernetes.watch.Watch().stream(clients.core.read_namespaced_pod_log, "typed.run-1-0", "default")
        )
        assert log.until(lambda line: line == "again")[0] == "hello"
        scale = clients.custom.patch_namespaced_custom_object_scale(
            "batuta.dev", "v1", "default", "applications", "typed", {"spec": {"replicas": 2}}
        )
        assert (scale["kind"], scale["spec"]) == ("Scale", {"replicas": 2})
    finally:
        clients.custom.delete_namespaced_custom_object("batuta.dev", "v1", "default", "applications", "typed")
    assert all(
        isinstance(e, kubernetes.client.CoreV1Event) for e in clients.core.list_namespaced_event("default").items
    )


def _is_ready(pod: Any) -> bool:
    return any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions)


def test_official_gets_errors_by_their_type(clients: Clients, stage: Stage) -> None:
    sites = clients.sites
    with pytest.raises(dynamic.exceptions.NotFoundError) as missing:
        sites.get(name="nowhere")
    assert missing.value.summary() == 'sites.batuta.dev "nowhere" not found'
    with pytest.raises(dynamic.exceptions.ConflictError, match="AlreadyExists"):
        sites.create(body=site("berlin"))
    with pytest.raises(dynamic.exceptions.UnprocessibleEntityError) as wrong:
        sites.create(body=site("er-one", residenc="eu", uplink={"latency": "soon"}))
    status = kubernetes.client.ApiClient().deserialize(wrong.value.body, "V1Status", "application/json")
    assert {cause.field for cause in status.details.causes} == {"spec.residenc", "spec.uplink.latency"}
    viewer = Clients(stage, "viewer")
    assert viewer.sites.get(name="berlin").metadata.name == "berlin"
    with pytest.raises(dynamic.exceptions.ForbiddenError, match="viewer"):
        viewer.sites.delete(name="berlin")
    asked = {"spec": {"resourceAttributes": {"verb": "delete", "group": "batuta.dev", "resource": "sites"}}}
    reviews = [kubernetes.client.AuthorizationV1Api(c.official) for c in (clients, viewer)]
    assert [r.create_self_subject_access_review(asked).status.allowed for r in reviews] == [True, False]


# --- kr8s -------------------------------------------------------------------------------------------------------------


def test_kr8s_writes_lists_and_watches(clients: Clients) -> None:
    api = clients.kr8s
    kind = new_class("Site", API, namespaced=False)
    made = kind(site("kr-one", residency="eu"), api=api)
    made.create()
    made.patch({"spec": {"residency": "de"}})
    made.patch([{"op": "replace", "path": "/spec/residency", "value": "world"}], type="json")
    assert kind.get("kr-one", api=api).spec == {"residency": "world"}
    made.label({"town": "yes"})
    assert [s.name for s in api.get("sites.batuta.dev", label_selector={"town": "yes"})] == ["kr-one"]
    assert "kr-one" in {s.name for s in api.get("sites")}
    since = made.metadata.resourceVersion
    made.annotate({"by": "me"})
    # A watch of one's own thread needs a client of its own thread.
    watching = Following(
        lambda: ((w, s.raw) for w, s in clients.kr8s.watch("sites", label_selector="town=yes", since=since))
    )
    ((word, seen),) = watching.until(lambda event: "annotations" in event[1]["metadata"])
    assert (word, seen["metadata"]["annotations"]) == ("MODIFIED", {"by": "me"})
    made.delete()
    assert watching.until(lambda event: event[0] == "DELETED")[-1][1]["metadata"]["name"] == "kr-one"
    assert not made.exists()


def test_kr8s_waits_follows_logs_and_gets_errors(clients: Clients) -> None:
    api = clients.kr8s
    kind = new_class("Application", API, namespaced=True)
    made = kind(application("kr-talks"), api=api)
    made.create()
    try:
        made.wait("condition=Ready", timeout=90)
        (pod,) = (p for p in api.get("pods", namespace="default") if p.name == "kr-talks.run-1-0")
        assert pod.ready()
        assert next(iter(pod.logs(follow=True, timeout=60))) == "hello"
        made.patch({"spec": {"replicas": 2}}, subresource="scale")
        assert kind.get("kr-talks", api=api).spec.components[0].replicas == {"count": 2}
    finally:
        made.delete()
    with pytest.raises(kr8s.ServerError) as wrong:
        new_class("Site", API, namespaced=False)(site("kr-two", residenc="eu"), api=api).create()
    assert wrong.value.status["details"]["causes"][0]["field"] == "spec.residenc"
    with pytest.raises(kr8s.ServerError) as old:
        next(iter(api.watch("sites", since="1")))
    assert old.value.status["reason"] == "Expired"
    (node,) = api.get("nodes")
    node.cordon()
    assert [n.unschedulable for n in api.get("nodes")] == [True]
    node.uncordon()


# --- lightkube --------------------------------------------------------------------------------------------------------


def test_lightkube_writes_pages_and_applies(clients: Clients) -> None:
    light, kind = clients.light, create_global_resource("batuta.dev", "v1", "Site", "sites")

    def of(name: str, **spec: Any) -> Any:
        return kind(metadata=ObjectMeta(name=name, labels={"of": "li"}), spec=spec)

    names = [f"li-{i}" for i in range(5)]
    for name in names:
        light.create(of(name))
    listed = light.list(kind, labels={"of": "li"}, chunk_size=2)
    assert [s.metadata.name for s in listed] == names
    assert int(listed.resourceVersion) > 0
    merged = light.patch(kind, "li-0", {"spec": {"residency": "eu"}}, patch_type=PatchType.MERGE)
    assert merged.spec == {"residency": "eu"}
    change = [{"op": "replace", "path": "/spec/residency", "value": "de"}]
    assert light.patch(kind, "li-0", change, patch_type=PatchType.JSON).spec == {"residency": "de"}
    whole = light.get(kind, "li-0")
    whole["spec"] = {"residency": "world"}
    assert light.replace(whole).spec == {"residency": "world"}
    assert light.apply(of("li-ap", residency="eu")).metadata.managedFields[0].operation == "Apply"
    with pytest.raises(lightkube.ApiError) as refused:
        light.apply(of("li-ap", residency="de"), field_manager="ben")
    assert (refused.value.status.code, refused.value.status.reason) == (409, "Conflict")
    assert [cause.field for cause in refused.value.status.details.causes] == [".spec.residency"]
    assert light.apply(of("li-ap", residency="de"), field_manager="ben", force=True).spec == {"residency": "de"}
    light.delete(kind, "li-ap")
    with pytest.raises(lightkube.ApiError) as gone:
        light.get(kind, "li-ap")
    assert (gone.value.status.code, gone.value.status.reason) == (404, "NotFound")
    assert (gone.value.status.details.kind, gone.value.status.details.name) == ("sites", "li-ap")


def test_lightkube_watches_waits_and_scales(clients: Clients) -> None:
    light, kind = clients.light, create_namespaced_resource("batuta.dev", "v1", "Application", "applications")
    assert [n.metadata.name for n in light.list(Node)] == ["pi-1"]
    listed = light.list(kind, namespace="default")
    list(listed)
    watching = Following(lambda: light.watch(kind, namespace="default", resource_version=listed.resourceVersion))
    light.create(kind(**application("li-talks")), namespace="default")
    try:
        light.wait(kind, "li-talks", for_conditions=["Ready"], namespace="default")
        words = [word for word, _ in watching.until(lambda e: (e[1].status or {}).get("ready") == "1/1")]
        assert words[0] == "ADDED"
        assert set(words[1:]) <= {"MODIFIED"}
        assert "li-talks.run-1-0" in {p.metadata.name for p in light.list(Pod, namespace="default")}
        assert next(iter(light.log("li-talks.run-1-0", namespace="default", follow=True))).strip() == "hello"
        scale = {"spec": {"replicas": 2}}
        answer = light.patch(kind.Scale, "li-talks", scale, namespace="default", patch_type=PatchType.MERGE)
        assert answer.spec.replicas == 2
    finally:
        light.delete(kind, "li-talks", namespace="default")
    # It gives what the server said as it is, and no type of its own, when a watch cannot begin.
    with pytest.raises(httpx2.HTTPStatusError, match="410 Gone"):
        next(iter(light.watch(kind, namespace="default", resource_version="1")))


# --- What takes its time --------------------------------------------------------------------------------------------


def test_official_gets_bookmarks(clients: Clients, bookmarking: Following) -> None:
    listed = clients.sites.get()
    mark = bookmarking.until(lambda e: e["type"] == "BOOKMARK")[-1]["raw_object"]
    assert (mark["kind"], mark["apiVersion"]) == ("Site", API)
    # A bookmark is a place to go on from, and nothing else.
    assert set(mark["metadata"]) <= {"resourceVersion", "creationTimestamp"}
    assert int(mark["metadata"]["resourceVersion"]) > 0
    assert "spec" not in mark
    name = listed.items[0].metadata.name
    after = Following(lambda: clients.sites.watch(resource_version=mark["metadata"]["resourceVersion"], timeout=90))
    clients.sites.patch(name=name, body={"metadata": {"labels": {"marked": "yes"}}}, content_type=MERGE)
    after.until(lambda e: e["raw_object"]["metadata"].get("labels", {}).get("marked") == "yes")

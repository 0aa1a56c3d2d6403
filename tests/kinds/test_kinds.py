"""What each kind finds wrong with itself, and that every reader agrees on what a resource is."""

from __future__ import annotations

import copy
import subprocess
import sys

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from batuta.kinds import KINDS, Application, Metadata, Model, Node, Site, kind_called
from batuta.kinds.application import (
    ApplicationSpec,
    Component,
    Failover,
    Input,
    ModelUse,
    Output,
    Placement,
    ProcessUse,
    Replicas,
    Resources,
    Serve,
    Slo,
    Toleration,
)
from batuta.kinds.base import BitsPerSecond, Bytes, Millicores, Millis, Problem, decode_hook
from batuta.kinds.container import Archive, ContainerUse, Mount, Publish
from batuta.kinds.manifest import dump, from_document, from_json, parse, to_document, to_json
from batuta.kinds.model import Golden, ModelSpec, Signature, Tensor, Variant, Version
from batuta.kinds.node import NodeSpec, Taint
from batuta.kinds.policy import Policy, PolicySpec
from batuta.kinds.program import HttpProbe, Probe
from batuta.kinds.rolling import Deadline, Rollout, UpdateWindow
from batuta.kinds.shape import misfits
from batuta.kinds.site import SiteSpec, Uplink

DIGEST = "sha256:" + "0" * 64
PROCESS = ProcessUse(command=("sleep", "5"))


def application(*components: Component, **spec: object) -> Application:
    return Application(metadata=Metadata(name="a"), spec=ApplicationSpec(components=components, **spec))


def serving(**changes: object) -> Component:
    given = {"model": ModelUse(name="digits", version="1"), "inputs": (Input(topic="a/+/b"),), **changes}
    return Component(name="serve", **given)


def boxed(**changes: object) -> ContainerUse:
    given = {"image": f"detector@{DIGEST}", "archive": Archive(digest=DIGEST, size_bytes=Bytes(1)), **changes}
    return ContainerUse(**given)


def found(resource: Application | Model | Node | Site) -> list[tuple[str, str]]:
    return [(problem.path, problem.code) for problem in resource.problems()]


C = "spec.components[0]"


@pytest.mark.parametrize(
    ("component", "problems"),
    [
        (Component(name="p", process=PROCESS), []),
        (serving(outputs=(Output(topic="b/{1}"), Output(forward="hub"))), []),
        (Component(name="p"), [(C, "one_of")]),
        (serving(process=PROCESS), [(C, "one_of"), (f"{C}.inputs", "value")]),
        (Component(name="p", container=boxed()), []),
        (Component(name="p", container=boxed(), runs="never-twice"), [(f"{C}.container", "value")]),
        (Component(name="p", container=boxed(archive=None)), [(f"{C}.container.image", "value")]),
        (Component(name="p", container=boxed(archive=None, image=f"reg.io/x@{DIGEST}")), []),
        (Component(name="p", container=boxed(archive=None, image=f"localhost:5000/x@{DIGEST}")), []),
        (Component(name="p", container=boxed(mounts=(Mount(at="/a"),))), [(f"{C}.container.mounts[0]", "one_of")]),
        (
            Component(name="p", container=boxed(mounts=(Mount(at="/a/../b", host="/x/../etc"),))),
            [(f"{C}.container.mounts[0].at", "value"), (f"{C}.container.mounts[0].host", "value")],
        ),
        (
            Component(name="p", container=boxed(mounts=(Mount(at="/", volume="v"),))),
            [(f"{C}.container.mounts[0].at", "value")],
        ),
        (
            Component(name="p", container=boxed(publish=(Publish(port=80, to=8080),))),
            [(f"{C}.container.publish", "value")],
        ),
        (
            Component(name="p", container=boxed(network="none", broker=True, ready=Probe(tcp=80))),
            [(f"{C}.container.ready", "value"), (f"{C}.container.broker", "value")],
        ),
        (Component(name="p", pipeline={}), [(f"{C}.pipeline", "not_yet")]),
        (serving(slo=Slo(p99_ms=Millis(50))), []),
        (Component(name="p", process=PROCESS, slo=Slo(p99_ms=Millis(50))), [(f"{C}.slo", "value")]),
        (Component(name="p", process=PROCESS, replicas=Replicas()), [(f"{C}.replicas", "one_of")]),
        (Component(name="p", process=PROCESS, replicas=Replicas(count=1, per_site=1)), [(f"{C}.replicas", "one_of")]),
        (
            Component(name="p", process=PROCESS, replicas=Replicas(every_node=False)),
            [(f"{C}.replicas.everyNode", "value")],
        ),
        (
            Component(name="p", process=PROCESS, placement=Placement(where="node.memry > 5")),
            [(f"{C}.placement.where", "unknown_field")],
        ),
        (
            Component(name="p", process=ProcessUse(command=("a",), env={"A B": "c", "OK_1": "d"})),
            [(f"{C}.process.env.A B", "key")],
        ),
        (
            Component(name="p", process=ProcessUse(command=("a",), ready=Probe(tcp=1, exec=("b",)))),
            [(f"{C}.process.ready", "one_of")],
        ),
        (
            Component(name="p", process=ProcessUse(command=("a",), live=Probe(http=HttpProbe(port=1, path="b")))),
            [(f"{C}.process.live.http.path", "value")],
        ),
        (serving(inputs=()), []),
        (serving(inputs=(), outputs=(Output(topic="a/x"),)), [(f"{C}.outputs", "value")]),
        (serving(inputs=(), serve=Serve(port=8000)), []),
        (serving(serve=Serve(port=80), resources=Resources(ports=(80,))), [(f"{C}.serve.port", "duplicate")]),
        (Component(name="p", process=PROCESS, serve=Serve(port=80)), [(f"{C}.serve", "value")]),
        (serving(inputs=(Input(topic="a", tensor="x"), Input(topic="b", tensor="y"))), [(f"{C}.inputs", "value")]),
        (serving(outputs=(Output(),)), [(f"{C}.outputs[0]", "one_of")]),
        (serving(outputs=(Output(topic="a/+"),)), [(f"{C}.outputs[0].topic", "value")]),
        (serving(outputs=(Output(topic="a/{2}"),)), [(f"{C}.outputs[0].topic", "value")]),
        (serving(outputs=(Output(topic="a/{x}"),)), [(f"{C}.outputs[0].topic", "value")]),
        (serving(outputs=(Output(topic="a/x"), Output(topic="b/x"))), [(f"{C}.outputs", "value")]),
        (serving(outputs=(Output(topic="readings"),)), [(f"{C}.outputs[0].topic", "value")]),
        (serving(outputs=(Output(topic="out/n1"),)), [(f"{C}.outputs[0].topic", "value")]),
        (serving(inputs=(Input(topic="a/b"), Input(topic="ctl/b"))), [(f"{C}.inputs[1].topic", "value")]),
        (
            Component(name="p", process=PROCESS, placement=Placement(near=("a/b", "$SYS/b"))),
            [(f"{C}.placement.near[1]", "value")],
        ),
        (serving(outputs=(Output(forward="hub"),)), [(f"{C}.outputs", "value")]),
    ],
)
def test_components(component, problems):
    assert found(application(component)) == problems


def test_applications():
    twice = Component(name="p", process=PROCESS)
    assert found(application(twice, twice)) == [("spec.components[1].name", "duplicate")]


@pytest.mark.parametrize(
    ("rollout", "problems"),
    [
        (Rollout(waves=("1 node", "10%", "100%"), gates=("errors.rate < 0.01",), concurrency=5, approvals=True), []),
        (Rollout(waves=("2 cows",)), [("spec.rollout.waves[0]", "value")]),
        (Rollout(waves=("50%", "10%")), [("spec.rollout.waves[1]", "value")]),
        (Rollout(gates=("errors.rate < 0.01", "latency.p77 < 5.0")), [("spec.rollout.gates[1]", "unknown_field")]),
        (
            Rollout(windows=(UpdateWindow(opens="0 22 * * *", closes="0 25 * * *"),)),
            [("spec.rollout.windows[0].closes", "value")],
        ),
        (Rollout(concurrency=1), [("spec.rollout.concurrency", "value")]),
        (Rollout(approvals=True, deadline=Deadline(wave_ms=Millis(1))), [("spec.rollout.approvals", "value")]),
    ],
)
def test_rollouts(rollout, problems):
    assert found(application(Component(name="p", process=PROCESS), rollout=rollout)) == problems


def test_models():
    variant = Variant(name="fp32", format="onnx", digest=DIGEST, size_bytes=Bytes(1))

    def model(*versions: Version) -> Model:
        return Model(metadata=Metadata(name="m"), spec=ModelSpec(versions=versions))

    assert found(model(Version(version="1", variants=(variant,)))) == []
    assert found(model(Version(version="1", variants=()))) == [("spec.versions[0].variants", "empty")]
    assert found(model(Version(version="1", variants=(variant, variant)))) == [
        ("spec.versions[0].variants[1].name", "duplicate")
    ]
    assert found(model(*[Version(version="1", variants=(variant,))] * 2)) == [("spec.versions[1].version", "duplicate")]
    for how in ("onnx", "tflite", "pte"):
        each = msgspec.structs.replace(variant, format=how)
        assert found(model(Version(version="1", variants=(each,), golden=Golden(digest=DIGEST)))) == []


def test_nodes_and_sites():
    taints = (Taint(key="a"), Taint(key="b"), Taint(key="a"))
    assert found(Node(metadata=Metadata(name="n"), spec=NodeSpec(site="s", taints=taints))) == [
        ("spec.taints[2].key", "duplicate")
    ]
    assert found(Site(metadata=Metadata(name="s"), spec=SiteSpec(parent="s"))) == [("spec.parent", "cycle")]
    assert found(Site(metadata=Metadata(name="s"), spec=SiteSpec(on_partition="failover"))) == [
        ("spec.onPartition", "not_yet")
    ]


def test_kinds_answer_to_their_names():
    for kind in KINDS:
        for word in (kind.__name__, kind.plural, kind.__name__.upper(), *kind.short_names):
            assert kind_called(word) is kind
    assert kind_called("pod") is None


def test_declaring_needs_no_heavy_company():
    """A node imports the kinds; what only the hub and the command line need comes when it is first used."""
    script = "import sys, batuta.kinds; print(sorted({'cel', 'rich', 'jsonschema', 'yaml'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_problems_print_where_what_and_what_to_do():
    problem = Problem(path="spec.x", code="c", message="is wrong", hint="write y")
    assert str(problem) == "spec.x: is wrong, write y"
    assert str(msgspec.structs.replace(problem, inside=3)) == "spec.x, character 3: is wrong, write y"
    assert str(msgspec.structs.replace(problem, file="f", line=1, column=2)) == "f:1:2: spec.x: is wrong, write y"
    assert str(Problem(path="", code="c", message="is wrong", line=1, column=2)) == "<input>:1:2: is wrong"


# --- Laws -------------------------------------------------------------------------------------------------------------

NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,8}[a-z0-9])?", fullmatch=True)
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.sampled_from(
        ["no", "y", "012", "1e3", "0x1F", "12:30", "null", "~", "", "2024-01-01", "a: b", "- a", "#", "a\nb\n"]
    ),
)
COUNTS = st.integers(0, 100_000)
PORTS = st.integers(1, 65_535)
DIGESTS = st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
LABELS = st.dictionaries(TEXTS, TEXTS, max_size=3)
TOPICS = st.lists(st.sampled_from(["a", "+", "frame", "7"]), min_size=1, max_size=4).map("/".join)


def quantities(kind: type, limit: int = 2**40) -> st.SearchStrategy:
    return st.integers(0, limit).map(kind)


METADATA = st.builds(
    Metadata,
    name=NAMES,
    namespace=st.none() | NAMES,
    labels=LABELS,
    annotations=LABELS,
    uid=st.none() | TEXTS,
    generation=st.none() | st.integers(0, 2**40),
)
SITES = st.builds(
    Site,
    metadata=METADATA,
    spec=st.builds(
        SiteSpec,
        parent=st.none() | NAMES,
        residency=st.none() | TEXTS,
        uplink=st.builds(
            Uplink,
            bandwidth_bps=st.none() | quantities(BitsPerSecond),
            latency_ms=st.none() | quantities(Millis),
            metered=st.booleans(),
        ),
    ),
)
NODES = st.builds(
    Node,
    metadata=METADATA,
    spec=st.builds(
        NodeSpec,
        site=NAMES,
        taints=st.lists(
            st.builds(Taint, key=TEXTS, value=TEXTS, effect=st.sampled_from(["NoSchedule", "NoExecute"])), max_size=3
        ).map(tuple),
        unschedulable=st.booleans(),
    ),
)
TENSORS = st.lists(
    st.builds(Tensor, name=TEXTS, dtype=TEXTS, shape=st.lists(st.integers(-1, 999), max_size=3).map(tuple)), max_size=2
).map(tuple)
VARIANTS = st.builds(
    Variant,
    name=NAMES,
    format=st.just("onnx"),
    digest=DIGESTS,
    size_bytes=quantities(Bytes),
    quality=st.dictionaries(TEXTS, NUMBERS, max_size=2),
)
MODELS = st.builds(
    Model,
    metadata=METADATA,
    spec=st.builds(
        ModelSpec,
        task=st.none() | TEXTS,
        versions=st.lists(
            st.builds(
                Version,
                version=TEXTS,
                variants=st.lists(VARIANTS, min_size=1, max_size=2).map(tuple),
                signature=st.none() | st.builds(Signature, inputs=TENSORS, outputs=TENSORS),
                labels=st.lists(TEXTS, max_size=3).map(tuple),
            ),
            max_size=2,
        ).map(tuple),
    ),
)
PROBES = st.builds(
    Probe,
    tcp=st.none() | PORTS,
    http=st.none() | st.builds(HttpProbe, port=PORTS),
    exec=st.none() | st.lists(TEXTS, max_size=2).map(tuple),
    every_ms=quantities(Millis),
    failures=st.integers(1, 100),
)
COMPONENTS = st.builds(
    Component,
    name=NAMES,
    process=st.none()
    | st.builds(
        ProcessUse,
        command=st.lists(TEXTS, min_size=1, max_size=3).map(tuple),
        env=LABELS,
        working_directory=st.none() | TEXTS,
        ready=st.none() | PROBES,
        stop_grace_ms=quantities(Millis),
    ),
    model=st.none()
    | st.builds(ModelUse, name=NAMES, version=TEXTS, batch=st.integers(1, 1024), linger_ms=quantities(Millis)),
    inputs=st.lists(st.builds(Input, topic=TOPICS, tensor=st.none() | TEXTS), max_size=2).map(tuple),
    outputs=st.lists(
        st.builds(Output, topic=st.none() | TOPICS, forward=st.sampled_from([None, "hub"])), max_size=2
    ).map(tuple),
    replicas=st.builds(
        Replicas, count=st.none() | COUNTS, per_site=st.none() | COUNTS, every_node=st.none() | st.booleans()
    ),
    placement=st.builds(
        Placement,
        where=st.sampled_from([None, "node.memory > 5", "node.memry > 5", 'node.os == "x"']),
        near=st.lists(TOPICS, max_size=2).map(tuple),
        spread=st.sampled_from([None, "node", "site"]),
        tolerations=st.lists(st.builds(Toleration, key=TEXTS, value=st.none() | TEXTS), max_size=2).map(tuple),
    ),
    resources=st.builds(Resources, cpu_millis=quantities(Millicores), memory_bytes=quantities(Bytes)),
    runs=st.sampled_from(["at-least-once", "never-twice"]),
    failover=st.builds(Failover, after_ms=quantities(Millis)),
)
APPLICATIONS = st.builds(
    Application,
    metadata=METADATA,
    spec=st.builds(ApplicationSpec, components=st.lists(COMPONENTS, min_size=1, max_size=3).map(tuple)),
)
RULES = st.sampled_from([None, "node.memory > 5", "component.slo.p99 < 5", 'now.time >= "22:00"', "node.memry > 5"])
POLICIES = st.builds(
    Policy,
    metadata=METADATA,
    spec=st.builds(
        PolicySpec,
        applies=RULES,
        require=RULES,
        forbid=RULES,
        prefer=RULES,
        weight=st.integers(0, 100),
        weights=st.dictionaries(st.sampled_from(["near", "energy", "enrgy"]), st.integers(0, 100), max_size=2),
        existing=st.sampled_from(["move", "stay"]),
        message=TEXTS,
    ),
)
RESOURCES = st.one_of(SITES, NODES, MODELS, APPLICATIONS, POLICIES)


@settings(max_examples=80, deadline=None)
@given(RESOURCES)
def test_json_is_read_back_as_the_same_resource(resource):
    assert from_json(to_json(resource)) == resource


@settings(max_examples=80, deadline=None)
@given(RESOURCES)
def test_what_is_admitted_survives_yaml_and_plain_values(resource):
    assume(not list(resource.problems()))
    assert parse(dump(resource)) == [resource]
    assert from_document(to_document(resource)) == resource


ODD = st.sampled_from(
    [None, True, 0, -1, 5, 2.0, 2.5, 10**6, 2**60, "", "x", "5s", "512Mi", "No_Name", [], ["x"], [1], {}, {"x": 1}]
)


def spots(value: object, path: tuple = ()) -> list[tuple]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(spot for key, child in inner for spot in spots(child, (*path, key)))]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_what_explains_a_refusal_agrees_with_what_refuses(data):
    """`shape` finds a misfit exactly when msgspec says no: neither a false alarm nor a silent refusal."""
    resource = data.draw(RESOURCES)
    document = to_document(resource)
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from(spots(document)[1:]))
        owner = document
        for step in path:
            owner = owner[step]
        match data.draw(st.sampled_from(["change", "remove", "add"])):
            case "change":
                owner[last] = copy.deepcopy(data.draw(ODD))
            case "remove":
                del owner[last]
            case "add" if isinstance(owner, dict):
                owner[data.draw(TEXTS)] = copy.deepcopy(data.draw(ODD))
    body = {key: value for key, value in document.items() if key not in ("apiVersion", "kind")}
    kind = type(resource)
    try:
        msgspec.convert({**body, "kind": kind.__name__}, kind, dec_hook=decode_hook)
    except msgspec.ValidationError as error:
        refused = str(error)
    else:
        refused = ""
    explained = [misfit for misfit in misfits(kind, body) if not misfit.inside]
    assert bool(explained) == bool(refused), (refused, explained)

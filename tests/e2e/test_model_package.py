"""Packages on real processes: hub, Debian's docker-registry, and `batuta` as people type it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx.helper
import pytest

from batuta.demo.stage import Stage, wait_for
from batuta.errors import ArtifactRefused, NotFound
from batuta.fabric.broker import free_port
from batuta.interop import modelkit, modelpack, oci
from batuta.kinds import Model
from batuta.model_layout import Layout
from batuta.model_registry import place, pull
from tests.cli.running import Ran, run
from tests.interop.programs import Place, program

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A hub; every test has models of its own."""
    made = Stage(tmp_path_factory.mktemp("stage"))
    try:
        made.start_hub()
        yield made
    finally:
        killed = made.close()
    assert killed == [], "these did not end when asked to"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """`host:port` of a registry of our own, and where it keeps its bytes."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("NOT TESTED: registries. There is no docker-registry here: apt-get install docker-registry")
    home = tmp_path_factory.mktemp("registry")
    address = f"127.0.0.1:{free_port('127.0.0.1')}"
    config = {
        "version": "0.1", "log": {"level": "warn"}, "http": {"addr": address},
        "storage": {"filesystem": {"rootdirectory": str(home / "data")}},
    }  # fmt: skip
    (home / "config.yml").write_text(json.dumps(config))
    with (home / "log").open("wb") as log:
        server = subprocess.Popen([program, "serve", str(home / "config.yml")], stdout=log, stderr=log)

    def answers() -> bool | None:
        try:
            with urllib.request.urlopen(f"http://{address}/v2/", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return None

    try:
        wait_for("the registry", answers, 60, alive=server)
        yield address, home / "data"
    finally:
        server.terminate()
        server.wait(30)


def model_file(path: Path, operator: str = "Relu") -> Path:
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node(operator, ["x"], ["y"])], "g", ends[:1], ends[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), path)
    return path


def done(ran: Ran) -> Ran:
    assert ran.code == 0, ran.err
    return ran


def spec_of(stage: Stage, name: str) -> Model:
    return stage.client.get(Model, name).resource


def test_from_a_file_through_hub_and_registry_to_another_name(
    stage: Stage, registry: tuple[str, Path], tmp_path: Path
) -> None:
    file, home = model_file(tmp_path / "m.onnx"), stage.hub_state
    (tmp_path / "train.csv").write_text("1,2,3\n")
    done(run("model", "push", str(file), "--name", "first", "--version", "1", "--labels", "a,b,c,d",
             "--task", "classification", "--memory", "32Mi", "--parent", "older:9", "--data",
             str(tmp_path / "train.csv"), "--code", "https://git.example/t@c0ffee", state=home))  # fmt: skip
    done(run("model", "key", str(tmp_path / "key")))
    done(run("model", "sign", "first", "--key", str(tmp_path / "key"), state=home))
    there = f"oci://{registry[0]}/models/first:1"
    done(run("model", "export", "first", "--version", "1", "--to", there, state=home))
    assert done(run("model", "push", there, "--name", "second", state=home)).out.startswith("models/second created")

    first, second = spec_of(stage, "first").spec, spec_of(stage, "second").spec
    assert second == first, "nothing was lost on the way"
    assert second.versions[0].variants[0].opset == 17
    done(run("model", "verify", "second", "--key", str(tmp_path / "key.pub"), state=home))
    said = done(run("model", "describe", "second", state=home)).out
    for words in ("x float32[?,4]", "parent  older:9", "https://git.example/t", "c0ffee", "train.csv sha256:"):
        assert words in said
    assert done(run("model", "push", there, "--name", "second", state=home)).out.startswith("models/second unchanged")


def test_a_package_without_a_hub_is_pulled_again_and_only_what_is_missing(
    stage: Stage, registry: tuple[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "files").mkdir()
    model_file(tmp_path / "files" / "fp32.onnx")
    model_file(tmp_path / "files" / "small.onnx", "Sigmoid")
    there = f"oci://{registry[0]}/models/packed:2"
    done(run("model", "pack", str(tmp_path / "files"), "--name", "packed", "--version", "2", "--to", there))
    fetched = done(run("model", "pull", there, str(tmp_path / "layout")))
    assert fetched.err.count("sha256:") == 3, "a config and two variants"
    again = done(run("model", "pull", there, str(tmp_path / "layout")))
    assert (again.out, again.err) == (fetched.out, "")
    # A file that was cut short is not taken for whole.
    layout = Layout(tmp_path / "layout")
    package = modelpack.read(
        layout.manifest(), layout.document(oci.manifest_of(layout.manifest()).config.digest)
    )  # fmt: skip
    assert [v.name for v in package.version.variants] == ["fp32", "small"]
    victim = layout.blob(package.version.variants[0].digest)
    os.truncate(victim, 10)
    refused = run("model", "push", str(tmp_path / "layout"), state=stage.hub_state)
    assert (refused.code, "has 10 bytes" in refused.err) == (1, True), refused.err
    with pytest.raises(NotFound):
        stage.client.get(Model, "packed")
    done(run("model", "pull", there, str(tmp_path / "layout")))
    done(run("model", "push", str(tmp_path / "layout"), state=stage.hub_state))
    assert [v.name for v in spec_of(stage, "packed").spec.versions[0].variants] == ["fp32", "small"]


def test_a_registry_that_lies_is_found_out(registry: tuple[str, Path], tmp_path: Path) -> None:
    there = f"oci://{registry[0]}/models/lies:1"
    file = model_file(tmp_path / "m.onnx", "Tanh")
    done(run("model", "pack", str(file), "--name", "lies", "--version", "1", "--to", there))
    digest = oci.digest_of(file.read_bytes())
    data = registry[1] / "docker/registry/v2/blobs/sha256" / digest[7:9] / digest[7:] / "data"
    data.write_bytes(bytes(reversed(file.read_bytes())))
    with pytest.raises(ArtifactRefused) as refused:
        pull(place(there), Layout(tmp_path / "layout"))
    assert refused.value.code == "digest_mismatch"
    assert not Layout(tmp_path / "layout").blob(digest).exists()
    assert Layout(tmp_path / "layout").references() == []
    data.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(ArtifactRefused):
        pull(place(there), Layout(tmp_path / "layout"))


def test_a_registry_that_has_no_such_thing_or_is_not_there(registry: tuple[str, Path], tmp_path: Path) -> None:
    absent = run("model", "pull", f"oci://{registry[0]}/models/nothing:1", str(tmp_path / "a"))
    assert (absent.code, f"{registry[0]} has no" in absent.err) == (1, True), absent.err
    nobody = run("model", "pull", "oci://127.0.0.1:1/x:1", str(tmp_path / "b"))
    assert (nobody.code, "127.0.0.1:1/x:1" in nobody.err) == (1, True), nobody.err
    wrong = run("model", "pull", "oci://NOT A PLACE", str(tmp_path / "c"))
    assert (wrong.code, "oci://host/repository:tag" in wrong.err) == (1, True), wrong.err
    assert "Traceback" not in absent.err + nobody.err + wrong.err


def test_a_modelkit_is_brought_to_the_hub(stage: Stage, tmp_path: Path) -> None:
    file, layout = model_file(tmp_path / "m.onnx"), Layout(tmp_path / "kit")
    with tarfile.open(tmp_path / "m.tar.gz", "w:gz") as tar:
        tar.add(file, "../../escape/m.onnx")
    layout.open()
    kitfile = json.dumps({"package": {"name": "kit", "version": "5"}, "model": {"path": "m.onnx"}}).encode()
    config = {"mediaType": modelkit.CONFIG, "digest": layout.put_document(kitfile), "size": len(kitfile)}
    digest, size = layout.put(tmp_path / "m.tar.gz")
    layers = [{"mediaType": "application/vnd.kitops.modelkit.model.v1.tar+gzip", "digest": digest, "size": size}]
    layout.name(json.dumps({"schemaVersion": 2, "config": config, "layers": layers}).encode(), "latest")
    done(run("model", "push", str(tmp_path / "kit"), state=stage.hub_state))
    (version,) = spec_of(stage, "kit").spec.versions
    assert (version.version, version.variants[0].digest) == ("5", oci.digest_of(file.read_bytes()))
    assert not (tmp_path.parent / "escape").exists()


def test_aliases_move_and_previous_follows_champion(stage: Stage, tmp_path: Path) -> None:
    home = stage.hub_state
    for version, operator in (("1", "Relu"), ("2", "Tanh")):
        file = model_file(tmp_path / f"{version}.onnx", operator)
        done(run("model", "push", str(file), "--name", "named", "--version", version, state=home))
    done(run("model", "alias", "named", "champion=1", "challenger=2", state=home))
    assert spec_of(stage, "named").spec.aliases == {"champion": "1", "challenger": "2"}
    done(run("model", "alias", "named", "champion=challenger", "challenger=", state=home))
    assert spec_of(stage, "named").spec.aliases == {"champion": "2", "previous": "1"}
    wrong = run("model", "alias", "named", "champion=9", state=home)
    assert (wrong.code, "there is no version '9'" in wrong.err) == (3, True), wrong.err
    file = model_file(tmp_path / "3.onnx", "Sigmoid")
    done(run("model", "push", str(file), "--name", "named", "--version", "3", state=home))
    assert spec_of(stage, "named").spec.aliases == {"champion": "2", "previous": "1"}, "a push moves nothing"


def test_other_formats_are_kept_and_wrong_ones_refused(stage: Stage, tmp_path: Path) -> None:
    home = stage.hub_state
    lite, torch = b"\x1c\x00\x00\x00TFL3" + bytes(100), program([Place((1, 4))], [Place((1, 2))])
    for name, data in (("a.tflite", lite), ("b.pte", torch)):
        (tmp_path / name).write_bytes(data)
        model = f"other-{name[0]}"
        done(run("model", "push", str(tmp_path / name), "--name", model, "--version", "1", state=home))
        assert spec_of(stage, model).spec.versions[0].variants[0].format == name[2:]
        (tmp_path / name).write_bytes(bytes(100))
        refused = run("model", "push", str(tmp_path / name), "--name", "not", "--version", "1", state=home)
        assert (refused.code, "by its first bytes" in refused.err) == (1, True), refused.err

"""ModelPack: what is written is read back whole, what others write is understood, what is wrong is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from batuta.errors import ArtifactRefused
from batuta.interop import modelkit, modelpack, oci, provenance
from batuta.interop.modelpack import Beside, Package
from batuta.interop.provenance import Lineage
from batuta.kinds.base import Bytes, Millis
from batuta.kinds.model import Golden, Needs, Profile, Signature, Tensor, Variant, Version

if TYPE_CHECKING:
    from collections.abc import Callable


def digest(byte: str) -> str:
    return f"sha256:{byte * 64}"


FULL = Package(
    "digits",
    Version(
        version="3",
        variants=(
            Variant(
                name="fp32", format="onnx", digest=digest("a"), size_bytes=Bytes(1000), opset=17, precision="fp32",
                needs=Needs(memory_bytes=Bytes(64 << 20)), quality={"accuracy": 0.97}, signatures=(digest("1"),),
                profiles=(Profile(hardware="raspberry-pi-4", p99_ms=Millis(12), memory_bytes=Bytes(90 << 20)),),
            ),
            Variant(
                name="int8", format="onnx", digest=digest("b"), size_bytes=Bytes(300), precision="int8",
                architectures=("arm64",), calibration=digest("c"), needs=Needs(accelerator="npu"),
            ),
        ),
        signature=Signature(
            inputs=(Tensor(name="x", dtype="float32", shape=(-1, 64)),),
            outputs=(Tensor(name="y", dtype="int64", shape=(-1,)),),
        ),
        golden=Golden(digest=digest("2"), tolerance=0.01),
        labels=("zero", "one"),
        drift=digest("3"),
        provenance=digest("4"),
    ),
    "classification",
    (
        Beside("signature", digest("1"), 10), Beside("golden", digest("2"), 20), Beside("drift", digest("3"), 30),
        Beside("provenance", digest("4"), 40),
    ),
)  # fmt: skip


def test_a_package_is_read_back_as_it_was_written() -> None:
    documents = modelpack.write(FULL)
    assert modelpack.read(*documents) == FULL
    assert modelpack.write(FULL) == documents, "the same package is the same bytes"
    assert FULL.files == {
        digest("a"): 1000, digest("b"): 300, digest("1"): 10, digest("2"): 20, digest("3"): 30, digest("4"): 40,
    }  # fmt: skip


def test_what_is_written_is_what_modelpack_asks_for() -> None:
    documents = modelpack.write(FULL)
    manifest, config = json.loads(documents.manifest), json.loads(documents.config)
    assert manifest["schemaVersion"] == 2
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    assert manifest["config"]["digest"] == oci.digest_of(documents.config)
    assert [layer["mediaType"].rpartition("application/vnd.cncf.model.")[2] for layer in manifest["layers"]] == [
        "weight.v1.raw", "weight.v1.raw", "doc.v1.raw", "dataset.v1.raw", "dataset.v1.raw", "doc.v1.raw",
    ]  # fmt: skip
    assert manifest["layers"][0]["annotations"]["org.cncf.model.filepath"] == "fp32.onnx"
    assert config["descriptor"] == {"name": "digits", "version": "3"}
    assert config["config"] == {"format": "onnx"}
    assert config["modelfs"] == {"type": "layers", "diffIds": [layer["digest"] for layer in manifest["layers"]]}
    notes = manifest["layers"][0]["annotations"]
    assert (notes["dev.batuta.variant.runtime"], notes["dev.batuta.variant.opset"]) == ("onnxruntime", "17")


def test_a_package_of_another_tool_needs_none_of_our_annotations() -> None:
    config = json.dumps({"descriptor": {"name": "theirs", "version": "7"}, "config": {}, "modelfs": {}}).encode()
    layer = {
        "mediaType": modelpack.WEIGHT, "digest": digest("a"), "size": 5,
        "annotations": {"org.cncf.model.filepath": "weights/My Model.onnx"},
    }  # fmt: skip
    manifest = {
        "schemaVersion": 2, "artifactType": modelpack.ARTIFACT, "layers": [layer],
        "config": {"mediaType": modelpack.CONFIG, "digest": oci.digest_of(config), "size": len(config)},
    }  # fmt: skip
    package = modelpack.read(json.dumps(manifest).encode(), config)
    assert (package.name, package.version.version) == ("theirs", "7")
    (variant,) = package.version.variants
    assert (variant.name, variant.format, variant.digest) == ("my-model", "onnx", digest("a"))


def changed(how: Callable[[dict[str, Any]], Any]) -> tuple[bytes, bytes]:
    documents = modelpack.write(FULL)
    manifest = json.loads(documents.manifest)
    how(manifest)
    return json.dumps(manifest).encode(), documents.config


@pytest.mark.parametrize(
    "how",
    [
        lambda m: m.update(schemaVersion=1),
        lambda m: m.update(layers=[]),
        lambda m: m.update(layers=m["layers"] * 100),
        lambda m: m["layers"][0].update(digest="sha256:../../etc/passwd"),
        lambda m: m["layers"][0].update(size=-1),
        lambda m: m["layers"][0].update(mediaType="application/vnd.cncf.model.weight.v1.tar"),
        lambda m: m["layers"][0]["annotations"].update({"dev.batuta.variant.format": "exe"}),
        lambda m: m["layers"][0]["annotations"].update({"dev.batuta.variant.opset": "many"}),
        lambda m: m["layers"][0]["annotations"].update({"dev.batuta.variant.quality": "{"}),
        lambda m: m["layers"][0]["annotations"].update({"dev.batuta.variant.name": "int8"}),
        lambda m: m["layers"].pop(2),
        lambda m: m["annotations"].update({"dev.batuta.model.drift": digest("9")}),
        lambda m: m["annotations"].update({"dev.batuta.model.provenance": "../x"}),
        lambda m: m["annotations"].update({"dev.batuta.model.signature": "[]"}),
        lambda m: m.pop("config"),
        lambda m: m.update(artifactType="text/plain", config={**m["config"], "mediaType": "text/plain"}),
    ],
)
def test_a_manifest_that_is_wrong_is_refused(how: Callable[[dict[str, Any]], Any]) -> None:
    with pytest.raises(ArtifactRefused) as refused:
        modelpack.read(*changed(how))
    assert refused.value.code == "artifact_unreadable"


def test_another_config_is_not_the_one_that_is_named() -> None:
    documents = modelpack.write(FULL)
    with pytest.raises(ArtifactRefused) as refused:
        modelpack.read(documents.manifest, documents.config + b" ")
    assert refused.value.code == "digest_mismatch"


@pytest.mark.parametrize("document", [b"", b"{", b"[]", b"\xff", b" " * (oci.DOCUMENT_BYTES_MAX + 1)])
def test_bytes_that_are_no_manifest(document: bytes) -> None:
    with pytest.raises(ArtifactRefused):
        modelpack.read(document, b"{}")
    with pytest.raises(ArtifactRefused):
        provenance.read(document)


def test_a_modelkit_says_where_its_model_is() -> None:
    kitfile = json.dumps({"package": {"name": "kit", "version": "1.2"}, "model": {"path": "./m.onnx"}}).encode()
    layers = [
        {"mediaType": "application/vnd.kitops.modelkit.dataset.v1.tar", "digest": digest("d"), "size": 1},
        {"mediaType": "application/vnd.kitops.modelkit.model.v1.tar+gzip", "digest": digest("e"), "size": 2},
    ]
    config = {"mediaType": modelkit.CONFIG, "digest": oci.digest_of(kitfile), "size": len(kitfile)}
    manifest = oci.manifest_of(json.dumps({"schemaVersion": 2, "config": config, "layers": layers}).encode())
    assert modelkit.is_kit(manifest)
    assert modelkit.read(manifest, kitfile) == modelkit.Kit("kit", "1.2", "./m.onnx", ((digest("e"), 2, True),))
    with pytest.raises(ArtifactRefused):
        modelkit.read(msgspec.structs.replace(manifest, layers=manifest.layers[:1]), kitfile)


def test_provenance_is_slsa_and_read_back() -> None:
    lineage = Lineage("digits:2", (("train.csv", digest("d")),), "https://git.example/train", "c0ffee")
    document = provenance.write(lineage, {"digits.onnx": digest("a")})
    said = json.loads(document)
    assert (said["_type"], said["predicateType"]) == (provenance.STATEMENT, "https://slsa.dev/provenance/v1")
    assert said["subject"] == [{"name": "digits.onnx", "digest": {"sha256": "a" * 64}}]
    assert said["predicate"]["runDetails"]["builder"]["id"]
    assert {
        "uri": "git+https://git.example/train",
        "digest": {"gitCommit": "c0ffee"},
        "annotations": {"role": "code"},
    } in (said["predicate"]["buildDefinition"]["resolvedDependencies"])
    assert provenance.read(document) == lineage


def test_provenance_of_another_builder_is_understood() -> None:
    foreign = {
        "_type": provenance.STATEMENT, "predicateType": provenance.PREDICATE, "subject": [],
        "predicate": {
            "buildDefinition": {
                "buildType": "https://theirs", "externalParameters": {},
                "resolvedDependencies": [
                    {"uri": "git+https://x/y@refs/heads/main", "digest": {"gitCommit": "abc"}},
                    {"uri": "https://data/train.csv", "digest": {"sha256": "d" * 64}},
                ],
            },
            "runDetails": {"builder": {"id": "https://theirs"}},
        },
    }  # fmt: skip
    found = provenance.read(json.dumps(foreign).encode())
    assert found == Lineage("", (("https://data/train.csv", digest("d")),), "https://x/y@refs/heads/main", "abc")
    with pytest.raises(ArtifactRefused):
        provenance.read(json.dumps({**foreign, "predicateType": "https://slsa.dev/provenance/v0.2"}).encode())

"""Image archives: both forms, their digests, and archives that somebody has tampered with."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batuta.errors import ArtifactRefused
from batuta.interop.oci_archive import chosen, images


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            made.addfile(entry, io.BytesIO(data))
    return out.getvalue()


class Layout:
    """An OCI layout in the making."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def blob(self, document: Any) -> str:
        data = json.dumps(document).encode()
        self.blobs[digest(data)] = data
        return digest(data)

    def image(self, architecture: str) -> tuple[str, str]:
        config = self.blob({"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}})
        return config, self.blob({"config": {"digest": config}, "layers": []})

    def tar(self, *entries: dict[str, Any], **more: bytes) -> bytes:
        files = {f"blobs/{name.replace(':', '/')}": data for name, data in self.blobs.items()}
        return tar({"index.json": json.dumps({"manifests": list(entries)}).encode(), **files, **more})


def read(data: bytes):
    return images(io.BytesIO(data))


def code(data: bytes) -> str:
    with pytest.raises(ArtifactRefused) as refused:
        read(data)
    return refused.value.code


def test_a_layout_tells_its_image_and_by_what_it_may_be_called():
    layout = Layout()
    config, manifest = layout.image("arm64")
    named = {"digest": manifest, "annotations": {"org.opencontainers.image.ref.name": "reg.example/box:1"}}
    (found,) = read(layout.tar(named))
    assert (found.id, found.manifest, found.name, found.architecture) == (
        config,
        manifest,
        "reg.example/box:1",
        "arm64",
    )
    assert chosen((found,), manifest, "arm64") == found
    assert chosen((found,), config, "") == found


def test_a_list_of_images_is_one_name_for_several_machines():
    layout = Layout()
    pair = [layout.image(each)[1] for each in ("amd64", "arm64")]
    index = layout.blob({"manifests": [{"digest": each} for each in (*pair, digest(b"left out"))]})
    found = read(layout.tar({"digest": index}))
    assert [each.architecture for each in found] == ["amd64", "arm64"]
    assert chosen(found, index, "arm64").manifest == pair[1]
    with pytest.raises(ArtifactRefused) as refused:
        chosen(found, index, "riscv64")
    assert "amd64, arm64" in refused.value.message


def test_the_older_form_has_the_digest_of_its_configuration_alone():
    config = json.dumps({"architecture": "amd64", "os": "linux"}).encode()
    listed = json.dumps([{"Config": "c.json", "RepoTags": ["localhost/box:1"], "Layers": []}]).encode()
    (found,) = read(tar({"manifest.json": listed, "c.json": config}))
    assert (found.digests, found.name) == ((digest(config),), "localhost/box:1")


def test_another_digest_is_refused_with_what_there_is():
    layout = Layout()
    _, manifest = layout.image("amd64")
    found = read(layout.tar({"digest": manifest}))
    with pytest.raises(ArtifactRefused) as refused:
        chosen(found, digest(b"other"), "amd64")
    assert refused.value.code == "digest_mismatch"
    assert manifest[:19] in refused.value.message


def test_a_document_with_other_bytes_than_its_name_is_refused():
    layout = Layout()
    config, manifest = layout.image("amd64")
    layout.blobs[config] += b" "
    assert code(layout.tar({"digest": manifest})) == "digest_mismatch"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no tar at all" * 100,
        tar({"readme": b"nothing"}),
        tar({"index.json": b"[]"}),
        tar({"index.json": b"{}"}),
        tar({"index.json": b"{", "oci-layout": b""}),
        tar({"manifest.json": b'[{"Config": "missing.json"}]'}),
        tar({"manifest.json": b"{"}),
        tar({"manifest.json": b"[7]"}),
        tar({f"{k}": b"" for k in range(5_000)}),
    ],
)
def test_what_is_no_image_archive_is_refused(data):
    assert code(data) == "artifact_unreadable"


def test_lists_that_lead_to_lists_end_somewhere():
    layout = Layout()
    inner = layout.image("amd64")[1]
    for _ in range(6):
        inner = layout.blob({"manifests": [{"digest": inner}]})
    assert code(layout.tar({"digest": inner})) == "artifact_unreadable"


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 4000), flip=st.integers(0, 4000))
def test_a_damaged_archive_is_refused_or_still_true(cut, flip):
    layout = Layout()
    config, manifest = layout.image("amd64")
    data = bytearray(layout.tar({"digest": manifest}))
    data[flip % len(data)] ^= 1
    try:
        found = read(bytes(data[: len(data) - cut]))
    except ArtifactRefused:
        return
    assert all(each.id == config and each.manifest == manifest for each in found)

"""Before a worker loads a model: what is signed, by whom it must be, is these bytes; anything else is refused."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec
import pytest

from batuta.core.decided import Instance, ModelOrder
from batuta.core.worker import WorkerOrder
from batuta.dataflow.engines import Unfit
from batuta.dataflow.serving import transform_of
from batuta.dataflow.vouching import vouched_for
from batuta.errors import ArtifactRefused
from batuta.kinds.base import Bytes
from batuta.kinds.model import Variant
from batuta.model_sign import make_key, sign_file

if TYPE_CHECKING:
    from pathlib import Path

FILE = b"weights" * 1000


def order(directory: Path, *bundles: Path, signers: tuple[tuple[str, ...], ...]) -> WorkerOrder:
    digest = f"sha256:{hashlib.sha256(FILE).hexdigest()}"
    variant = Variant(name="fp32", format="onnx", digest=digest, size_bytes=Bytes(len(FILE)))
    instance = Instance(
        namespace="default", application="a", component="c", revision=1, slot="0", epoch=1,
        model=ModelOrder(name="m", version="1", variant=variant, signers=signers),
    )  # fmt: skip
    return WorkerOrder(
        instance=instance, artifact=str(directory / "model"), directory=str(directory), broker={}, start=1,
        bundles=tuple(map(str, bundles)),
    )  # fmt: skip


CODE = b"def after(outputs):\n    return outputs\n"


def with_code(wanted: WorkerOrder, directory: Path, *bundles: Path) -> WorkerOrder:
    """The same, of a version that brings Python along."""
    (directory / "transform").write_bytes(CODE)
    assert wanted.instance.model is not None
    model = msgspec.structs.replace(
        wanted.instance.model, transform=f"sha256:{hashlib.sha256(CODE).hexdigest()}",
        transform_signatures=tuple("sha256:" + "0" * 64 for _ in bundles),
    )  # fmt: skip
    return msgspec.structs.replace(
        wanted, instance=msgspec.structs.replace(wanted.instance, model=model),
        transform=str(directory / "transform"), bundles=(*wanted.bundles, *map(str, bundles)),
    )  # fmt: skip


def code_of(wanted: WorkerOrder) -> str:
    with pytest.raises(ArtifactRefused) as refused:
        vouched_for(wanted)
    return refused.value.code


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, str]:
    """A bundle of the file that lies beside it, and the public key."""
    private, public = make_key(tmp_path / "key")
    (tmp_path / "model").write_bytes(FILE)
    sign_file(tmp_path / "model", private, tmp_path / "bundle")
    return tmp_path / "bundle", public.read_text()


def test_what_is_signed_passes(signed: tuple[Path, str], tmp_path: Path) -> None:
    bundle, key = signed
    vouched_for(order(tmp_path, bundle, signers=((key,),)))


def test_nobody_asking_nothing_is_read(tmp_path: Path) -> None:
    vouched_for(order(tmp_path / "absent", signers=()))


def test_bytes_that_changed_on_the_disk_are_not_loaded(signed: tuple[Path, str], tmp_path: Path) -> None:
    bundle, key = signed
    wanted = order(tmp_path, bundle, signers=((key,),))
    for damaged in (FILE[:-1], FILE + b"x", b"", b"x" + FILE[1:]):
        (tmp_path / "model").write_bytes(damaged)
        assert code_of(wanted) == "digest_mismatch"


def test_no_bundle_a_wrong_one_and_one_that_is_gone(signed: tuple[Path, str], tmp_path: Path) -> None:
    bundle, key = signed
    (tmp_path / "garbage").write_bytes(b"{}")
    other, _ = make_key(tmp_path / "other")
    sign_file(tmp_path / "model", other, tmp_path / "strange")
    assert code_of(order(tmp_path, signers=((key,),))) == "signature_missing"
    assert code_of(order(tmp_path, tmp_path / "garbage", signers=((key,),))) == "signature_invalid"
    assert code_of(order(tmp_path, tmp_path / "strange", signers=((key,),))) == "signer_unknown"
    assert code_of(order(tmp_path, tmp_path / "gone", signers=((key,),))) == "signature_invalid"
    vouched_for(order(tmp_path, tmp_path / "garbage", bundle, signers=((key,),)))


def test_a_bundle_of_another_model_does_not_vouch_for_this_one(signed: tuple[Path, str], tmp_path: Path) -> None:
    _, key = signed
    (tmp_path / "another").write_bytes(b"other weights")
    sign_file(tmp_path / "another", tmp_path / "key", tmp_path / "of-another")
    wanted = order(tmp_path, tmp_path / "of-another", signers=((key,),))
    assert code_of(wanted) == "signature_invalid"


def test_a_versions_own_python_needs_the_same_signers_as_its_file(signed: tuple[Path, str], tmp_path: Path) -> None:
    bundle, key = signed
    other, others = make_key(tmp_path / "other")
    both = order(tmp_path, bundle, signers=((key,),))
    (tmp_path / "code").write_bytes(CODE)
    sign_file(tmp_path / "code", tmp_path / "key", tmp_path / "of-code")
    sign_file(tmp_path / "code", other, tmp_path / "strange")
    vouched_for(with_code(both, tmp_path, tmp_path / "of-code"))
    assert code_of(with_code(both, tmp_path)) == "signature_missing"
    assert code_of(with_code(both, tmp_path, tmp_path / "strange")) == "signer_unknown"
    assert code_of(with_code(both, tmp_path, bundle)) == "signature_invalid", "the file's own vouches for no code"
    of_two = order(tmp_path, bundle, signers=((key,), (others.read_text(),)))
    assert code_of(with_code(of_two, tmp_path, tmp_path / "of-code")) == "signer_unknown"
    wanted = with_code(both, tmp_path, tmp_path / "of-code")
    (tmp_path / "transform").write_bytes(CODE + b"import os\n")
    assert code_of(wanted) == "digest_mismatch"


def test_code_that_changed_on_the_disk_is_not_run_whether_or_not_anybody_signs(tmp_path: Path) -> None:
    wanted = with_code(order(tmp_path, signers=()), tmp_path)
    found = transform_of(wanted)
    assert found is not None
    found.close()
    (tmp_path / "transform").write_bytes(CODE + b"import os\n")
    with pytest.raises(Unfit) as unfit:
        transform_of(wanted)
    assert unfit.value.code == "digest_mismatch"

"""Measuring a file here: in a process of its own, the one that nodes prove models with."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from batuta.core.proving import RESULT_BYTES_MAX, Proof, ProvingOrder
from batuta.errors import ArtifactRefused
from batuta.kinds.base import decode_hook, encode_hook

PROVING = "batuta.dataflow.proving"
PROVING_S = 900.0


def proved(path: Path, *, golden: Path | None = None, tolerance: float = 0.001) -> Proof:
    """What the proving process says of a file. Raises ArtifactRefused when it died of it."""
    with tempfile.TemporaryDirectory(prefix="batuta-proving-") as directory:
        result = Path(directory) / "proof.json"
        order = ProvingOrder(
            artifact=str(path.absolute()), format="onnx", result=str(result),
            golden=str(golden.absolute()) if golden is not None else "", tolerance=tolerance,
        )  # fmt: skip
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", PROVING], input=msgspec.json.encode(order, enc_hook=encode_hook),
                capture_output=True, timeout=PROVING_S, check=False,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ArtifactRefused("proving_failed", f"it was not done within {PROVING_S:.0f} s") from None
        if not result.exists():
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            how = f"killed by signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
            raise ArtifactRefused("proving_failed", f"the process that measured it ended: {how} {' '.join(last)}"[:300])
        with result.open("rb") as file:
            return msgspec.json.decode(file.read(RESULT_BYTES_MAX), type=Proof, dec_hook=decode_hook)

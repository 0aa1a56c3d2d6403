"""What a program prints must not depend on how Python hashes strings."""

from __future__ import annotations

import os
import subprocess
import sys


def told_under_hash_seeds(program: str, timeout_s: float) -> dict[str, str]:
    """What `program` prints, by hash seed."""
    return {
        seed: subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=timeout_s,
        ).stdout.strip()
        for seed in ("0", "1", "4242")
    }

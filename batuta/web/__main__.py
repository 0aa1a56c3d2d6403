"""`python -m batuta.web --state DIR`: the hub process, as `batuta up` starts it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# nats-py imports this optional transport when it is installed for somebody else; it costs ten megabytes, and the broker
# is reached by plain TCP on loopback.
sys.modules.setdefault("aiohttp", None)  # type: ignore[arg-type]

from batuta.web.serve import main  # noqa: E402

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    sys.exit(main(parser.parse_args().state))

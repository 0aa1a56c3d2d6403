"""`python -m batuta.web --state DIR`: the hub process, as `batuta up` starts it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from batuta.web.serve import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    sys.exit(main(parser.parse_args().state))

"""`python -m batuta` is `batuta`."""

from __future__ import annotations

import signal

# Whoever ends us while we load our modules means it; it is heard by whoever can act on it (`cli.main`, `cli.join`).
ENDINGS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def run() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)
    from batuta.cli.main import main

    main()


if __name__ == "__main__":
    run()

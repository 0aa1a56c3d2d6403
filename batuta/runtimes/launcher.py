"""Becomes an instance: sets its limits, then executes its command in its own place.

Run as a script by an isolated interpreter, so it imports nothing but the standard library, and little of that. It
stands between fork and exec because a process that has threads must not run code there. The process keeps its id and
its start time; if the command cannot be executed, the reason goes back through the status pipe, which exec closes.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38


def main() -> None:
    order = json.loads(sys.argv[1])
    status = int(order["status"])
    os.set_inheritable(status, False)
    try:
        if order["tiedTo"]:
            tie(int(order["tiedTo"]))
        confine(order["limits"])
        # Python ignores SIGPIPE, and a node agent that starts holds signals back; programs expect the defaults, and
        # inherit what is set here.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        os.execvp(order["command"][0], order["command"])  # noqa: S606 - an argument list is the rule here
    except OSError as error:
        os.write(status, json.dumps({"errno": error.errno, "detail": str(error)}).encode())
        os._exit(127)


def tie(parent: int) -> None:
    """From here on the kernel kills this process when the thread that forked it ends, whatever it executes meanwhile.

    Its own children are not tied with it: the kernel forgets this at every fork.
    """
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # It ended before the kernel knew; nobody is left to hear why.
        os._exit(127)


def confine(limits: dict[str, int]) -> None:
    """Every limit is one that the kernel keeps; what it refuses to lower further is already low."""
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NOFILE, limits["openFiles"])
    if limits["dataBytes"]:
        _lower(resource.RLIMIT_DATA, limits["dataBytes"])
    os.setpriority(os.PRIO_PROCESS, 0, max(limits["nice"], os.getpriority(os.PRIO_PROCESS, 0)))
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(limits["oomScore"]))
    _prctl(PR_SET_NO_NEW_PRIVS, 1)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"the kernel refuses prctl({option}, {value})")


def _lower(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(what, (most, most))


if __name__ == "__main__":
    main()

"""Machine: what physically runs on a node, whatever its agent believes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batuta.core.decided import Instance
    from batuta.twin.laws import Laws


class Process:
    """One running copy of an instance."""

    __slots__ = ("alive", "began", "instance", "node", "pid", "ready", "ready_at", "stubborn")

    def __init__(self, node: str, instance: Instance, pid: int, began: int, stubborn: bool) -> None:
        self.node = node
        self.instance = instance
        self.pid = pid
        self.began = began
        self.stubborn = stubborn
        self.ready = False
        self.ready_at = began
        """When it was first ready."""
        self.alive = True


class Machine:
    """A machine's processes, by pid. It obeys; the laws watch every begin and end."""

    def __init__(self, node: str, laws: Laws) -> None:
        self.node = node
        self.laws = laws
        self.processes: dict[int, Process] = {}
        self._pids = 0

    def begin(self, instance: Instance, now: int, stubborn: bool) -> Process:
        self._pids += 1
        process = Process(self.node, instance, self._pids, now, stubborn)
        self.processes[process.pid] = process
        self.laws.process_began(process)
        return process

    def end(self, process: Process) -> None:
        if process.alive:
            process.alive = process.ready = False
            del self.processes[process.pid]
            self.laws.process_ended(process)

    def end_all(self) -> None:
        for process in list(self.processes.values()):
            self.end(process)

    def called(self, name: str) -> list[Process]:
        """All copies of this name; more than one is already a broken law."""
        return [p for p in self.processes.values() if p.instance.name == name]

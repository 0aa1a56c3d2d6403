"""The same core in virtual time: the real `decide`, `step` and `heard` over modelled links, clocks and machines.

`run(scenario, seed)` is a pure function: heap of events in, Verdict out, the same trace digest on any machine and
under any PYTHONHASHSEED. What fails is drawn from the seed; what must hold is in `laws`.

Belongs here: virtual time, physics, faults, laws, scenarios. Never here: a second implementation of what `core`
decides, a real clock, `random`, I/O.
"""

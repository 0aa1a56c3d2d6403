"""The node: what one machine needs to run what it was assigned, with or without a hub.

One loop gathers what changed, folds it into state, asks `core.local.step` what to do, writes that down, does it,
reports and sleeps until the next change. Everything else here is a sense (probe, pulse, neighbours), a hand
(actuator, artifacts), a memory (ledger) or a voice (report, questions); none of them decides.

Belongs here: the machine's side of every contract with the hub, and what must survive a crash of this process. Never
here: placement, anything that needs NumPy, ONNX Runtime, a web server or a schema validator (they cost more memory
than the whole agent), and no message whose loss would matter: a node's order is state that it reads again.
"""

from __future__ import annotations

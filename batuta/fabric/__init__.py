"""How processes talk: NATS in production, memory in tests; one contract, one suite.

Belongs here: the contract (`base`), its two tenants (`nats`, `memory`), every subject by name (`subjects`), the streams
of a site (`site`), running a broker (`broker`), who may connect as what (`identity`, `callout`), and time (`clock`).
Never here: what a message means. The fabric moves bytes under names; it decodes no record, decides nothing and knows of
nodes only that they have a name and a certificate.

Two worlds share each node's broker and never mix. CONTROL leads to the hub: orders down, reports and forwarded data up.
SITE leads to the neighbours: topics, and the work queues of components. Nothing crosses over by itself.
"""

from __future__ import annotations

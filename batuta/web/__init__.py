"""How people and programs ask the hub: HTTP, after the conventions of the Kubernetes API.

Belongs here: routes generated from KINDS, decoding and answering, who may ask, watching, metrics, and the process
that serves them beside the deciding loop (`python -m batuta.web`). Never here: a decision, or a table of its own.
What is shown comes from the hub's feed; what is written goes through the hub's declarations.
"""

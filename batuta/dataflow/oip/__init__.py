"""The Open Inference Protocol, version 2: how a model worker answers requests.

Belongs here: what the protocol says, in bytes and in tensors (`faults`, `datatypes`, `messages`), who runs what when
(`batching`), and where it is answered (`endpoint`, `http`, `on_fabric`). Never here: what a model is made of, which is
`dataflow.engines`', or where models run. Imported by workers only, for it needs NumPy; `faults` may be had by anybody.
"""

"""How things run: one tenant per file behind one contract, `runtimes.base.Runtime`.

Belongs here: starting, finding again, watching and stopping. Never here: when to do so (`core.local`), where artifacts
come from (`agent.artifacts`), or how data reaches an instance (`dataflow`).
"""

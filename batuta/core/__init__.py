"""What to do about it: pure, total, deterministic.

Three tables, one writer each. People write *desired*, the hub writes *decided*, nodes write *observed*; status is
never stored, it is computed from the three (`core.view`). `decide(state, now)` is the hub's half: it folds ordered
rules over one immutable State and returns a Decision, a value. `step(assignment, locals, now)` is the node's half. Both
run in production, in the twin and in property tests, and neither knows which.

Belongs here: rules as rows, the values they read and return, and the Reasons they give. Never here: a clock, chance, an
identity that is not derived, I/O, logging; they are arguments. Nothing is imported here on purpose: a node needs only
`core.local`, and must not pay for placement's arithmetic.

Laws, proven in `tests/laws`: `decide` is idle when done; deciding what a change touches equals deciding everything; no
capacity is exceeded; a `never-twice` slot never runs twice; a converged fleet stays converged; one seed, one trace.
"""

"""The deciding process: gather, fold, decide, commit, sleep.

Belongs here: the tables as the hub holds them (`store`), the loop, the hub's ears (`sightings`), nodes joining
(`enrol`), artifacts, forwarded data, questions to nodes, and the process tree that keeps it alive (`supervisor`).
Never here: what to decide (`core`), how bytes travel (`fabric`), how people ask (`web`).

One writer each: people's declarations come in through `web`, the hub alone writes *decided*, nodes alone write
*observed*. Whatever dies here is rebuilt from the tables; nothing is kept in memory that cannot be lost.
"""

"""The mesh on a node: who serves which model, and how a call gets to the nearest instance that is well.

Here belongs what moves a call's bytes: hearing cards, the paths to an instance (its Unix socket, the site's fabric, the
hub's), attempts and their books, and the node's HTTP door. What to do is decided by `core.mesh*`, which is pure.
Tensors are never looked into: a call's body goes through as it came. Nothing of this runs in the node agent.
"""

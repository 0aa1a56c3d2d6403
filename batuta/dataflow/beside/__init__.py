"""Two releases of one model beside each other on a node: the new one is shown what the old one is asked, or answers a
share of it.

Belongs here: how one hands to the other, and how their answers are compared. The old one keeps all that must not be
lost, frames and requests; the new one has nothing that anybody misses when it dies. Never here: which release is
tried where, and what follows from it; that is the hub's.
"""

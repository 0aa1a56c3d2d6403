"""How data moves on a node: from the topics that a site captures, through a model, to answers and on to the hub.

Belongs here: the worker processes that carry data, and the streams between them. They may die at any instant: what is
not acknowledged is done again, and an answer's identity makes doing it twice harmless. Never here: decisions about
where anything runs, or NumPy and ONNX Runtime at import time.
"""

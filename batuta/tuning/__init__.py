"""Tuning: what a model could be instead, and what each of its files is worth.

Here belongs what makes variants of a model (with ONNX Runtime's own tools), evaluates them on labelled data, and what
golden inputs are. NumPy, onnx and ONNX Runtime live here, so nothing here may be imported by a node agent, nor by a
command before it is clear that it needs it. Nothing is imported by this package itself.
"""

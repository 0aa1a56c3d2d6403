"""Batuta: edge AI orchestration. One hub, light node agents, one declarative language."""

__version__ = "0.1.0"

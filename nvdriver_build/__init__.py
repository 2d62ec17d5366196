"""Entrypoint of an NVIDIA driver container for OpenShift, as a library and a command.

The rooms of this package and the direction of their imports are in docs/architecture.md.
"""

__version__ = "0.1.0"

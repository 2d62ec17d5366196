"""The parts of scripts/kit: apt with private state, and the choice of kernels by role."""

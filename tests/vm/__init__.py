"""A real kernel in a virtual machine, a fake GPU for it, and the tests that run there."""

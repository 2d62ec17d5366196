"""The files in /run/nvidia that the rest of the GPU stack waits for (contracts.md, Files in /run/nvidia).

`files`   who owns the node, what is announced, and in which order
`status`  the document status.json
`probes`  startup, liveness and readiness, as pure looks at files

Imports little: `probe` runs every few seconds.
"""

from nvdriver_build.readiness.files import Features, Readiness
from nvdriver_build.readiness.probes import Verdict, liveness, peermem, readiness, startup
from nvdriver_build.readiness.status import Status

__all__ = ["Features", "Readiness", "Status", "Verdict", "liveness", "peermem", "readiness", "startup"]

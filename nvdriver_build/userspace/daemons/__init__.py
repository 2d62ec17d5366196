"""The daemons that go with a driver: one table, and their supervision."""

from nvdriver_build.userspace.daemons.supervisor import Supervisor
from nvdriver_build.userspace.daemons.table import DAEMONS, Daemon, refuse_nvlink5

__all__ = ["DAEMONS", "Daemon", "Supervisor", "refuse_nvlink5"]

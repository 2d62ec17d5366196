"""The driver's pod as `fleet` renders it: a Driver Toolkit without any right builds for the driver."""

from __future__ import annotations

from pod_rig import MakePod
from rendered import without_rights

from nvdriver_build.fleet.manifests import Driver, daemonset
from nvdriver_build.fleet.plan import DaemonSetWanted


def test_a_toolkit_without_rights(make_pod: MakePod) -> None:
    """No privileges, no capabilities, nothing of the node but the shared folder: the modules are built."""
    pod = make_pod()
    wanted = DaemonSetWanted("416.94.202408260940-0", "name", "toolkit")
    spec = daemonset(wanted, Driver(pod.image), {})["spec"]["template"]["spec"]
    driver_container, toolkit_container = spec["containers"]
    driver = pod.driver(*driver_container["command"], *driver_container["args"])
    toolkit = without_rights(pod, toolkit_container)
    driver.says('"stage": "load"')
    assert pod.status["origin"] == "built"
    assert toolkit.runs, toolkit.text

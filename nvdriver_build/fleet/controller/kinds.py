"""The kinds of API objects that the controller reads and writes, and where the API has them."""

from __future__ import annotations

from typing import Optional

from attrs import frozen


@frozen
class Kind:
    """A kind of API objects: `group` is empty for the core API, `plural` as in paths."""

    group: str
    version: str
    name: str
    plural: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """As in an object's apiVersion."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: Optional[str] = None, name: Optional[str] = None, part: str = "") -> str:
        """The path of the list, of one object, or of a `part` of it (`status`, `eviction`)."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        within = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        one = f"/{name}" if name else ""
        return f"{root}{within}/{self.plural}{one}{f'/{part}' if part else ''}"


NODE = Kind("", "v1", "Node", "nodes", namespaced=False)
POD = Kind("", "v1", "Pod", "pods")
CONFIG_MAP = Kind("", "v1", "ConfigMap", "configmaps")
EVENT = Kind("", "v1", "Event", "events")
SECRET = Kind("", "v1", "Secret", "secrets")
DAEMONSET = Kind("apps", "v1", "DaemonSet", "daemonsets")
JOB = Kind("batch", "v1", "Job", "jobs")
LEASE = Kind("coordination.k8s.io", "v1", "Lease", "leases")
IMAGE_STREAM = Kind("image.openshift.io", "v1", "ImageStream", "imagestreams")
IMAGE_STREAM_TAG = Kind("image.openshift.io", "v1", "ImageStreamTag", "imagestreamtags")
CLUSTER_VERSION = Kind("config.openshift.io", "v1", "ClusterVersion", "clusterversions", namespaced=False)
POOL = Kind(
    "machineconfiguration.openshift.io", "v1", "MachineConfigPool", "machineconfigpools", namespaced=False
)

"""Labels and annotations by which we know nodes and objects of ours, and those of others that we read."""

LABEL = "nvdriver-build/os-version"
"""Our node label: the RHCOS version that the node's own word (nodeInfo) gives. DaemonSets select by it.

On a DaemonSet and on a Job the annotation of this name has the version, word by word.
"""
GPU_LABEL = "nvdriver-build/gpu"
"""A person's own word, where nothing finds GPUs: `true`, or `false` to keep the driver off a node."""
CONFIG_NOTE = "nvdriver-build/config"
"""On a pod: a digest over what ConfigMaps and Secrets hold that the driver reads."""
TEMPLATE_NOTE = "nvdriver-build/template"
"""On a pod: a digest of the template that it was made from."""
DRIVER_NOTE = "nvdriver-build/driver"
"""On a pod: a digest of all of its template but the Driver Toolkit. A toolkit that comes, goes or is another
one is no reason to replace a driver that runs.
"""
UPGRADE = "nvdriver-build/upgrade"
"""On a node whose driver is being changed: how far it is (annotation, `fleet.upgrade.state`), and its stage
(label), by which such nodes are found.
"""
KEY_NOTE = "nvdriver-build/prebuild"
"""On a Job: a digest of what it builds."""
PARAMETERS = "parameters"
"""Between the driver's name and a digest in the name of a ConfigMap with module parameters."""
DRIVER_CONTAINER = "nvidia-driver-ctr"
"""Of a driver's pod; the GPU Operator's name for it."""
MANAGED_BY, COMPONENT = "app.kubernetes.io/managed-by", "app.kubernetes.io/component"
DRIVER, PREBUILD, FLEET = "nvidia-driver", "prebuild", "fleet"
"""Values of `COMPONENT`. The GPU Operator gives its pods the first: their anti-affinity holds for ours
too.
"""
NFD = "feature.node.kubernetes.io/"
NFD_KERNEL = f"{NFD}kernel-version.full"
NFD_VERSION = f"{NFD}system-os_release.OSTREE_VERSION"

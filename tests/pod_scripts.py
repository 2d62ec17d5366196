"""What is started in the containers beside what the image has: our fakes, the operator's probe and hook."""

from __future__ import annotations

WRAPPER = """\
#!/bin/sh
# What the kernel of the node answers; then the operator's command.
set -e
mount --bind /rig/osrelease /proc/sys/kernel/osrelease
mount --bind /rig/version /proc/sys/kernel/version
mount --bind /rig/pci /sys/bus/pci/devices
[ ! -d /rig/module ] || mount --rbind /rig/module /sys/module
exec "$@"
"""
TRAP = """\
#!/bin/sh
echo "$0 $*" >>/rig/trapped
exit 1
"""
PROBE = """\
#!/bin/sh
# The rules of the GPU Operator's startup probe (gpu-operator, assets/state-driver/0400_configmap.yaml).
folder=/run/nvidia/validations
mkdir -p $folder
[ -f /sys/module/nvidia/refcnt ] || { echo "nvidia is not loaded"; exit 1; }
word=$(cat $folder/.driver-daemons-status 2>/dev/null || echo Ready)
[ "$word" = Ready ] || { echo "the daemons are $word"; exit 1; }
nvidia-smi || { echo "nvidia-smi failed"; exit 1; }
for name in GDRCOPY_ENABLED GDS_ENABLED GPU_DIRECT_RDMA_ENABLED; do
    printf '%s: %s\\n' $name "$(printenv $name || echo false)"
done >$folder/.driver-ctr-ready.tmp
mv $folder/.driver-ctr-ready.tmp $folder/.driver-ctr-ready
"""
PRE_STOP = (
    "/bin/sh",
    "-c",
    "rm -f /run/nvidia/validations/.driver-ctr-ready /run/nvidia/validations/.driver-daemons-status",
)
"""As in gpu-operator, assets/state-driver/0500_daemonset.yaml."""

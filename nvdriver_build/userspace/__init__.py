"""What the GPU stack needs of us beside the modules.

`rootfs`        this container's root file system at /run/nvidia/driver
`mounts`        what is mounted where
`firmware`      GSP firmware where the kernel finds it
`device_nodes`  the driver's files in /dev
`selinux`       the label that containers may use
`daemons`       nvidia-persistenced, nvidia-fabricmanager: one table

Nothing is imported here, as in `loader`.
"""

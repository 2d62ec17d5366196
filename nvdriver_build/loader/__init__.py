"""Gets a module set into the kernel and out of it again, and says who is in the way.

`host`        what the kernel has loaded, read from /sys/module; light enough for every second
`devices`     the GPUs that PCI shows, and the drivers that have taken them
`processes`   who has the driver's device files open
`parameters`  module parameters, from the files in /drivers to the options that modprobe gets
`root`        the private module root: our modules, their in-tree dependencies, depmod
`kernel_log`  what the kernel says while a module loads
`causes`      the reasons why a kernel does not take a module, as a table
`diagnosis`   which of them it was, from modprobe's words and the kernel log
`patience`    waiting for what passes by itself
`load`        modprobe, in order, each module proven live and of this set
`unload`      rmmod, holders first; refuses, naming the users, before it touches anything

Nothing is imported here: `probe` needs `host` alone.
"""

"""The life of one driver on one node: the only place where the order of stages stands.

own       the pid file, locked: one driver a node
withdraw  readiness of whoever was here before, first of all
look      which kernel runs, and what modules for it need
obtain    a set that fits, proven
prepare   a module root that modprobe sees alone
load      our modules, and nobody else's, once their firmware is in place
start     device files, daemons, the root file system for others
ready     announced, last of all
watch     until a signal: what is lost is told within a second
leave     readiness withdrawn, what was started undone, then the driver unloaded
"""

"""`run` up to the first modprobe, on files: NODE RELEASE HEADERS MODULES SOURCE STORE [NAME=VALUE]."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from nvdriver_build.cli.logs import configure
from nvdriver_build.commands import SystemCommands
from nvdriver_build.config import read_config
from nvdriver_build.loader.host import Host
from nvdriver_build.loader.kernel_log import KernelLog
from nvdriver_build.node.getting import Ways
from nvdriver_build.node.life import Node
from nvdriver_build.node.peermem import MofedPlace
from nvdriver_build.node.status import Reporter
from nvdriver_build.node.userland import NodeUserland
from nvdriver_build.readiness import Readiness
from nvdriver_build.userspace.daemons import Supervisor


def main() -> None:
    node, release, headers, modules, source, store, *more = sys.argv[1:]
    folder = Path(node)
    write(folder / "proc/sys/kernel/osrelease", release)
    uts = (Path(headers) / "include/generated/utsversion.h").read_text()
    write(folder / "proc/sys/kernel/version", uts.split('"')[1])
    gpu = folder / "sys/bus/pci/devices/0000:01:00.0"
    for name, value in (("vendor", "0x10de"), ("device", "0x2330"), ("class", "0x030200")):
        write(gpu / name, value)
    config = read_config(
        {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "NVDRIVER_HEADERS": headers,
            "NVDRIVER_SOURCE": source,
            "NVDRIVER_STORE": store,
            "NVDRIVER_MODULE_TREE": modules,
            "NVDRIVER_RUN_DIR": str(folder / "run"),
            **dict(word.split("=", 1) for word in more),
        }
    )
    commands = SystemCommands(config.path)
    host = Host(proc=folder / "proc", sys=folder / "sys", dev=folder / "dev")
    readiness = Readiness(config.run_dir)
    configure("console", 20)
    driver = Node(
        config=config,
        host=host,
        machine="x86_64",
        commands=commands,
        leaving=commands,
        journal=KernelLog().follow,
        stop=lambda: None,
        progress=lambda *_: sys.exit("this was to be a store hit"),
        readiness=readiness,
        ways=Ways(config, commands, MofedPlace(host)),
        userland=NodeUserland(host, commands, commands, Supervisor(host, commands)),
        modules=folder / "modules",
        pause=time.sleep,
    )
    with readiness.owned():
        readiness.withdraw()
        driver.make_ready(Reporter(readiness))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


if __name__ == "__main__":
    main()

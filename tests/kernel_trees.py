"""Small trees that look like kernel headers and Driver Toolkits, as dicts of files."""

from __future__ import annotations

import json
from typing import Dict, Mapping, Optional, Union

from trees import Link

Files = Dict[str, Union[str, bytes, Link]]

RELEASE = "5.14.0-427.13.1.el9_4.x86_64"
RHEL_COMPILER = "gcc (GCC) 11.4.1 20230605 (Red Hat 11.4.1-2)"
CONFIG = {
    "X86_64": "y",
    "SMP": "y",
    "PREEMPT_BUILD": "y",
    "PREEMPT_DYNAMIC": "y",
    "MODULE_UNLOAD": "y",
    "MODVERSIONS": "y",
    "CC_VERSION_TEXT": f'"{RHEL_COMPILER}"',
    "LOCALVERSION": '""',
}
SYMBOLS = {"module_layout": 0x11111111, "printk": 0x22222222, "kmalloc": 0x33333333}
VERMAGIC_H = """\
#include <generated/utsrelease.h>
#include <asm/vermagic.h>
#ifdef CONFIG_SMP
#define MODULE_VERMAGIC_SMP "SMP "
#else
#define MODULE_VERMAGIC_SMP ""
#endif
{preempt}
#else
#define MODULE_VERMAGIC_PREEMPT ""
#endif
#ifdef CONFIG_MODULE_UNLOAD
#define MODULE_VERMAGIC_MODULE_UNLOAD "mod_unload "
#else
#define MODULE_VERMAGIC_MODULE_UNLOAD ""
#endif
#ifdef CONFIG_MODVERSIONS
#define MODULE_VERMAGIC_MODVERSIONS "modversions "
#else
#define MODULE_VERMAGIC_MODVERSIONS ""
#endif
#ifdef RANDSTRUCT
#include <generated/randstruct_hash.h>
#define MODULE_RANDSTRUCT "RANDSTRUCT_" RANDSTRUCT_HASHED_SEED
#else
#define MODULE_RANDSTRUCT
#endif
#define VERMAGIC_STRING UTS_RELEASE " " \\
    MODULE_VERMAGIC_SMP MODULE_VERMAGIC_PREEMPT MODULE_VERMAGIC_MODULE_UNLOAD MODULE_VERMAGIC_MODVERSIONS \\
    MODULE_ARCH_VERMAGIC MODULE_RANDSTRUCT
"""
"""What include/linux/vermagic.h defines; `preempt` stands for a value of PREEMPT."""
PREEMPT = {
    "4.18": '#ifdef CONFIG_PREEMPT\n#define MODULE_VERMAGIC_PREEMPT "preempt "',
    "5.4": '#ifdef CONFIG_PREEMPT\n#define MODULE_VERMAGIC_PREEMPT "preempt "\n'
    '#elif defined(CONFIG_PREEMPT_RT)\n#define MODULE_VERMAGIC_PREEMPT "preempt_rt "',
    "5.16": '#ifdef CONFIG_PREEMPT_BUILD\n#define MODULE_VERMAGIC_PREEMPT "preempt "\n'
    '#elif defined(CONFIG_PREEMPT_RT)\n#define MODULE_VERMAGIC_PREEMPT "preempt_rt "',
    "7.2": '#ifdef CONFIG_PREEMPT_RT\n#define MODULE_VERMAGIC_PREEMPT "preempt_rt "\n'
    '#elif defined(CONFIG_PREEMPT_BUILD)\n#define MODULE_VERMAGIC_PREEMPT "preempt "',
}
"""The branches for PREEMPT, by the kernel in which they were seen first. RHEL 9's 5.14 is as 5.4."""
KERNEL_MAKEFILE = """\
VERSION = 5
PATCHLEVEL = 14
include $(srctree)/scripts/Kbuild.include
include $(srctree)/arch/$(SRCARCH)/Makefile
include include/config/auto.conf
"""
"""The lines of a kernel's own Makefile that include others."""


def config_text(config: Mapping[str, str]) -> str:
    """A .config with these settings."""
    head = "#\n# Automatically generated file; DO NOT EDIT.\n#\n# CONFIG_DEBUG_PREEMPT is not set\n"
    return head + "".join(f"CONFIG_{name}={value}\n" for name, value in config.items())


def symvers_text(symbols: Mapping[str, int] = SYMBOLS) -> str:
    """A Module.symvers in which vmlinux exports these symbols."""
    return "".join(f"{crc:#010x}\t{name}\tvmlinux\tEXPORT_SYMBOL\t\n" for name, crc in symbols.items())


def build_tree(
    release: str = RELEASE,
    config: Mapping[str, str] = CONFIG,
    symvers: Optional[str] = None,
    *,
    like: str = "5.4",
) -> Files:
    """A kernel build tree like that of RHEL's kernel-devel, its vermagic.h like that of Linux `like`."""
    return {
        "Makefile": KERNEL_MAKEFILE,
        "scripts/Makefile.build": "",
        ".config": config_text(config),
        "Module.symvers": symvers_text() if symvers is None else symvers,
        "include/generated/utsrelease.h": f'#define UTS_RELEASE "{release}"\n',
        "include/linux/vermagic.h": VERMAGIC_H.replace("{preempt}", PREEMPT[like]),
    }


def under(folder: str, files: Mapping[str, Union[str, bytes, Link]]) -> Files:
    """The same files below `folder`."""
    return {f"{folder}/{name}": content for name, content in files.items()}


def toolkit(*releases: str, document: Optional[object] = None) -> Files:
    """The root of a Driver Toolkit image with the headers of `releases`, linked as in the real one."""
    if document is None:
        document = {"KERNEL_VERSION": releases[0], "RT_KERNEL_VERSION": "", "RHEL_VERSION": "9.4"}
    files: Files = {"etc/driver-toolkit-release.json": json.dumps(document)}
    for release in releases:
        files.update(under(f"usr/src/kernels/{release}", build_tree(release)))
        files[f"usr/lib/modules/{release}/build"] = Link(f"/usr/src/kernels/{release}")
    files["lib"] = Link("usr/lib")
    return files

"""Headers of a kernel that does not exist: a real one's, under another release."""

from __future__ import annotations

import shutil
from pathlib import Path

from attrs import evolve
from sample_driver import replace_text
from vm.kit import KitKernel

SETTING = {
    ".config": "\nCONFIG_LOG_BUF_SHIFT={}\n",
    "include/config/auto.conf": "\nCONFIG_LOG_BUF_SHIFT={}\n",
    "include/generated/autoconf.h": " CONFIG_LOG_BUF_SHIFT {}\n",
}
"""Changes the layout of no structure, so that every CRC stays; we cannot know that, and refuse."""


def renamed(kernel: KitKernel, folder: Path, suffix: str, setting: str = "") -> KitKernel:
    """A copy of a kernel's headers, with another release and, if asked for, another value of `SETTING`."""
    release = f"{kernel.release}-{suffix}"
    headers = folder / f"linux-headers-{release}"
    shutil.copytree(kernel.headers, headers, symlinks=True)
    for name in ("scripts", "tools"):
        (headers / name).unlink()
        (headers / name).symlink_to((kernel.headers / name).resolve())
    (folder / kernel.common.name).symlink_to(kernel.common)
    replace_text(headers / "include/generated/utsrelease.h", f'"{kernel.release}"', f'"{release}"')
    if setting:
        for name, line in SETTING.items():
            replace_text(headers / name, line.format(17), line.format(setting))
    return evolve(kernel, release=release, headers=headers)

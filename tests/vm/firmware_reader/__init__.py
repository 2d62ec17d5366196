"""firmware_reader.ko: loads where the kernel finds a firmware file, for the VM.

ko = build(kernel, folder)
vm.run(f"insmod {ko} name=nvidia/1.2/gsp.bin && rmmod firmware_reader")
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from ..kit import KitKernel

SOURCE = Path(__file__).parent


def build(kernel: KitKernel, folder: Path) -> Path:
    """Compile firmware_reader.ko for a kernel of the kit, in `folder`. AssertionError with make's words."""
    for name in ("firmware_reader.c", "Makefile"):
        shutil.copy(SOURCE / name, folder)
    argv = ["make", "-C", str(folder), f"COMMON={kernel.common}", f"FLAVOUR={kernel.headers}"]
    done = subprocess.run(argv, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "firmware_reader.ko"

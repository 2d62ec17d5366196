"""firmware_reader.ko: loads where the kernel finds a firmware file, for the VM.

ko = build(kernel, folder)
vm.run(f"insmod {ko} name=nvidia/1.2/gsp.bin && rmmod firmware_reader")
"""

from __future__ import annotations

from pathlib import Path

from ..kit import KitKernel, compile_module

SOURCE = Path(__file__).parent


def build(kernel: KitKernel, folder: Path) -> Path:
    """Compile firmware_reader.ko for a kernel of the kit, in `folder`. AssertionError with make's words."""
    return compile_module(SOURCE, kernel, folder)

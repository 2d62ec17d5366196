"""fakegpu.ko: a PCI host bridge with NVIDIA GPUs that bind but cannot be opened, for the VM.

ko = build(kernel, folder)                                  # 1 s
vm.run(f"insmod {ko}")                                      # one H100 at 0001:00:00.0
vm.run(f"rmmod fakegpu; insmod {ko} {OFF_THE_BUS}")         # other GPUs, by module parameters
"""

from __future__ import annotations

from pathlib import Path

from ..kit import KitKernel, compile_module

SOURCE = Path(__file__).parent

OFF_THE_BUS = "boot42=0xffffffff"
NOT_OPEN = "device=0x15f8 boot42=0x130a1000"  # a P100: too old for the open kernel modules
TOO_NEW = "device=0x2901 boot42=0x1a2a1000"  # a B200: unknown to 535
TWO = "ndev=2"
SECOND_OFF_THE_BUS = "ndev=2 boot42=0,0xffffffff"


def build(kernel: KitKernel, folder: Path) -> Path:
    """Compile fakegpu.ko for a kernel of the kit, in `folder`. AssertionError with make's words."""
    return compile_module(SOURCE, kernel, folder)

"""Kernels: what modules are meant for, what headers give, what runs here.

Every path under /proc, /sys and /lib/modules comes in as an argument.
"""

from nvdriver_build.kernel.compiler import Compiler, find_compiler
from nvdriver_build.kernel.headers import Headers, find_headers
from nvdriver_build.kernel.proof import Proof, prove
from nvdriver_build.kernel.running import RunningKernel, Security, read_security
from nvdriver_build.kernel.target import (
    KernelTarget,
    Symbol,
    parse_symvers,
    target_from_headers,
    target_from_modules,
)
from nvdriver_build.kernel.toolkit import ToolkitRelease, read_toolkit_release

__all__ = [
    "Compiler",
    "Headers",
    "KernelTarget",
    "Proof",
    "RunningKernel",
    "Security",
    "Symbol",
    "ToolkitRelease",
    "find_compiler",
    "find_headers",
    "parse_symvers",
    "prove",
    "read_security",
    "read_toolkit_release",
    "target_from_headers",
    "target_from_modules",
]

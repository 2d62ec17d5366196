"""The table of reasons why a kernel does not take a module, by the texts that tell them.

The texts are those of kernel/module, kernel/params.c and security/lockdown of Linux 5.14 to 6.12, of kmod 30
(tools/modprobe.c), and of NVIDIA's nv.c, nv-pci.c, nvidia-peermem.c and resource manager, 535 to 580. A named
group of a pattern is a value for the message; `{module}` is what was to be loaded, `{claims}` who has GPUs.
"""

from __future__ import annotations

from typing import Optional, Type

from attrs import frozen

from nvdriver_build.errors import LoadError, NoGpuError, NvdriverError, SigningError, UsageError

REBUILD = "build for the kernel that runs; `nvdriver-build verify --running` names everything that differs"
TRUST = (
    "sign with a key whose certificate this kernel trusts: one in the firmware's db, or enrolled with "
    "`mokutil --import` and confirmed at the next boot (it counts only while Secure Boot is on)"
)
_GPU = r"The NVIDIA GPU (?P<gpu>[0-9a-f:.]+) \(PCI ID: (?P<id>[0-9a-f:]+)\) installed in (?:this|the) system "


@frozen
class Cause:
    """One row: where `pattern` is found in modprobe's words or the kernel log, `message` says what happened.

    A `partial` one can also strike some of the node's GPUs while the module loads for the others.
    """

    pattern: str
    message: str
    hint: Optional[str] = None
    error: Type[NvdriverError] = LoadError
    partial: bool = False


NO_GPU = Cause(
    r"No NVIDIA GPU found|No NVIDIA PCI devices found",
    "there is no NVIDIA GPU on this node",
    "`lspci -d 10de:` should list it: pass it through to a virtual machine; keep the driver off other nodes",
    NoGpuError,
)
CLAIMED = Cause(
    r"The NVIDIA probe routine was not called",
    "NVIDIA's driver is kept from a GPU: {claims}",
    "keep the other driver off (kernel argument module_blacklist=nouveau) and reboot; a GPU that vfio-pci "
    "has is set aside for virtual machines",
    partial=True,
)
SIGNATURE_CAUSES = (
    Cause(
        r"Loading of unsigned module is rejected",
        "{module} is unsigned, or was stripped after signing, and this kernel takes signed modules only",
        TRUST,
        SigningError,
    ),
    Cause(
        r"Loading of module with unavailable key is rejected",
        "{module} is signed with a key that this kernel does not trust",
        TRUST,
        SigningError,
    ),
    Cause(
        r"Loading of module with unsupported crypto is rejected",
        "{module} is signed with a digest or a cipher that this kernel does not have",
        "sign with RSA and sha256",
        SigningError,
    ),
    Cause(
        r"Lockdown: [^\n]*unsigned module loading is restricted",
        "{module} has no signature that this kernel trusts, and the kernel is locked down",
        TRUST,
        SigningError,
    ),
    Cause(
        r"Key was rejected by service|Required key not available",
        "the kernel rejected the signature of {module}: it is not of these bytes, or not of a trusted key",
        f"sign again, after the last change to the file (strip comes before); {TRUST}",
        SigningError,
    ),
)
FORMAT_CAUSES = (
    Cause(
        r"(?P<which>\S+): version magic '(?P<found>[^']*)' should be '(?P<wanted>[^']*)'",
        "{which} was built for another kernel: its version magic is '{found}', this kernel wants '{wanted}'",
        REBUILD,
    ),
    Cause(
        r"(?P<which>\S+): disagrees about version of symbol (?P<symbol>\S+)",
        "{which} was built against another kernel: it disagrees about the version of {symbol}",
        REBUILD,
    ),
    Cause(
        r"(?P<which>\S+): no symbol version for (?P<symbol>\S+)",
        "{which} has no version of {symbol}, and this kernel wants one",
        REBUILD,
    ),
    Cause(
        r"(?P<which>\S+): module uses symbol \(?(?P<symbol>\w+)\)? from namespace (?P<space>\w+), but ",
        "{which} uses {symbol} of the symbol namespace {space}, which it does not import",
        REBUILD,
    ),
    Cause(
        r"(?P<which>\S+): module using GPL-only symbols uses symbols (?P<symbol>\S+) "
        r"from proprietary module (?P<owner>\w+)",
        "{which} uses GPL-only symbols and {symbol} of the proprietary {owner}: this kernel forbids that",
        "load open modules with open ones only",
    ),
    Cause(
        r"(?P<which>\S+): Unknown symbol (?P<symbol>\S+) \(err -?\d+\)",
        "{which} needs symbols that neither this kernel nor a loaded module has: {symbol}",
        f"the module that has them is of another build, or they are GPL-only and this one is not; {REBUILD}",
    ),
    Cause(
        r"(?P<which>\S+): [`'](?P<value>[^']*)' (?:invalid|too large) for parameter [`'](?P<parameter>\w+)'",
        "{which} refuses the value '{value}' of its parameter {parameter}",
        "mend the module's parameter file",
        UsageError,
    ),
    Cause(
        r"(?P<line>[^\n]*(?:Invalid ELF|in ELF header|section size must match|Skipping invalid reloc)[^\n]*)",
        "the kernel cannot read {module}: {line}",
        REBUILD,
    ),
    Cause(
        r"failed to validate module \[(?P<which>\w+)\] BTF",
        "{which} carries type information (BTF) of another kernel",
        REBUILD,
    ),
    Cause(r"Exec format error", "{module} is not in the format that this kernel loads", REBUILD),
)
GPU_CAUSES = (
    NO_GPU,
    Cause(
        _GPU + r"is not supported by open nvidia\.ko",
        "GPU {gpu} ({id}) is not supported by open nvidia.ko: it is older than Turing",
        "set KERNEL_MODULE_TYPE=proprietary",
        NoGpuError,
        partial=True,
    ),
    Cause(
        r"requires use of the NVIDIA open kernel modules",
        "a GPU is not supported by proprietary nvidia.ko: it requires the open modules",
        "set KERNEL_MODULE_TYPE=open",
        NoGpuError,
        partial=True,
    ),
    Cause(
        _GPU + r"is not supported by the NVIDIA (?P<release>\S+) driver release",
        "GPU {gpu} ({id}) is not supported by driver {release}",
        "use a driver whose list of supported products has it: a newer one for a new GPU, older for an old",
        NoGpuError,
        partial=True,
    ),
    Cause(
        r"ignoring the legacy GPU (?P<gpu>[0-9a-f:.]+)",
        "GPU {gpu} is no longer supported by this driver",
        "use one of NVIDIA's legacy driver branches",
        NoGpuError,
        partial=True,
    ),
    Cause(
        _GPU + r"has fallen off the bus",
        "GPU {gpu} ({id}) has fallen off the bus: it does not answer",
        "power the node off and on (a reboot may not do); if it stays, look at its power, slot and cooling",
        partial=True,
    ),
    Cause(
        r"(?P<line>This PCI I/O region assigned to your NVIDIA device is (?:invalid|not supported)|"
        r"request_mem_region failed for \S+ @ \w+|This is a 64-bit BAR mapped above \S+)",
        "a GPU has no usable memory region: {line}",
        "turn on 'above 4G decoding' in the firmware, update it, or boot with pci=realloc",
        partial=True,
    ),
    CLAIMED,
    Cause(
        r"module compiled without IB peer memory symbols present",
        "{module} is a stub: it was built without MOFED's symbols",
        "build it with MOFED's Module.symvers, or leave GPU_DIRECT_RDMA_ENABLED off",
    ),
)
OTHER_CAUSES = (
    Cause(
        r"Cannot allocate memory",
        "the kernel has no memory to load {module}",
        "free memory on the node; `dmesg` says what could not be allocated",
    ),
    Cause(
        r"Module (?P<which>\S+) not found in directory (?P<folder>\S+)",
        "modprobe does not find {which} in {folder}",
        "the module root is made anew at each run: something else has changed it",
    ),
    Cause(
        r"Operation not permitted",
        "this process may not load {module}",
        "the container must be privileged (CAP_SYS_MODULE), and /proc/sys/kernel/modules_disabled be 0",
    ),
    Cause(
        r"Device or resource busy",
        "{module} is being loaded or unloaded by somebody else",
        "try again when that is done; `lsmod` and `dmesg` say more",
    ),
)
CAUSES = (*SIGNATURE_CAUSES, *FORMAT_CAUSES, *GPU_CAUSES, *OTHER_CAUSES)
"""From the most telling to the least; the first that is found counts."""

NOTICES = (
    *(cause for cause in CAUSES if cause.partial),
    Cause(
        r"(?P<which>\S+): unknown parameter '(?P<parameter>[^']*)' ignored",
        "{which} has no parameter {parameter}: ignored",
    ),
    Cause(
        r"(?P<which>\S+): module verification failed",
        "{which} has no signature that this kernel trusts: it was loaded, and the kernel is tainted",
    ),
)
"""What the kernel may say of a module that it does load."""

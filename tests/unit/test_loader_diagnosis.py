"""Why a load failed. The texts are what modprobe and the kernel printed in a VM, unless a case says not."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Type

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvdriver_build.errors import LoadError, NoGpuError, NvdriverError, SigningError, UsageError
from nvdriver_build.loader.causes import CAUSES, NOTICES
from nvdriver_build.loader.devices import Claim, PciDevice
from nvdriver_build.loader.diagnosis import Failure, diagnose, notices
from nvdriver_build.loader.kernel_log import KernelLog, parse_record

GPU = PciDevice("0001:00:00.0", "10de", "2330", "030200", None)
TAKEN = Claim("pci-stub", GPU)
INSERT = "modprobe: ERROR: could not insert 'nvidia': "
ENODEV = INSERT + "No such device\n"
MAGIC = "6.1.0-47-amd64 SMP {} mod_unload modversions "
UNKNOWN = "nvidia: Unknown symbol {} (err {})"
PROBED_NONE = (
    "nvidia: probe of 0001:00:00.0 failed with error -1",
    "NVRM: The NVIDIA probe routine failed for 1 device(s).",
    "NVRM: None of the NVIDIA devices were initialized.",
)
NOT_CALLED = (
    "NVRM: The NVIDIA probe routine was not called for 1 device(s).",
    "NVRM: This can occur when a driver such as: ",
    "NVRM: nouveau, rivafb, nvidiafb or rivatv ",
    "NVRM: was loaded and obtained ownership of the NVIDIA device(s).",
)
OFF_THE_BUS = (
    "nvidia 0001:00:00.0: enabling device (0000 -> 0002)",
    "NVRM: The NVIDIA GPU 0001:00:00.0",
    "NVRM: (PCI ID: 10de:2330) installed in this system has",
    "NVRM: fallen off the bus and is not responding to commands.",
)
NOT_OPEN = (
    "NVRM: The NVIDIA GPU 0001:00:00.0 (PCI ID: 10de:15f8)",
    "NVRM: installed in this system is not supported by open",
    "NVRM: nvidia.ko because it does not include the required GPU",
    "NVRM: System Processor (GSP).",
)
TOO_NEW = (
    "NVRM: The NVIDIA GPU 0001:00:00.0 (PCI ID: 10de:2901)",
    "NVRM: installed in this system is not supported by the",
    "NVRM: NVIDIA 535.261.03 driver release.",
    "NVRM: Please see 'Appendix A - Supported NVIDIA GPU Products'",
)
LOCKDOWN = "Lockdown: modprobe: unsigned module loading is restricted; see man kernel_lockdown.7"
REJECTED = INSERT + "Key was rejected by service\n"

CASES: dict[str, tuple[str, tuple[str, ...], Type[NvdriverError], str]] = {
    "no GPU": (ENODEV, ("NVRM: No NVIDIA GPU found.",), NoGpuError, "there is no NVIDIA GPU on this node"),
    "off the bus": (
        ENODEV,
        (*OFF_THE_BUS, *PROBED_NONE),
        LoadError,
        "GPU 0001:00:00.0 (10de:2330) has fallen off the bus: it does not answer",
    ),
    "too old for open modules": (
        ENODEV,
        (*NOT_OPEN, *PROBED_NONE),
        NoGpuError,
        "GPU 0001:00:00.0 (10de:15f8) is not supported by open nvidia.ko: it is older than Turing",
    ),
    "too new for this release": (
        ENODEV,
        (*TOO_NEW, *PROBED_NONE),
        NoGpuError,
        "GPU 0001:00:00.0 (10de:2901) is not supported by driver 535.261.03",
    ),
    "claimed": (
        ENODEV,
        (*NOT_CALLED, "NVRM: No NVIDIA devices probed."),
        LoadError,
        "NVIDIA's driver is kept from a GPU: 0001:00:00.0 (10de:2330) is bound to pci-stub",
    ),
    "version magic": (
        INSERT + "Exec format error\n",
        (f"nvidia: version magic '{MAGIC.format('pree_pt')}' should be '{MAGIC.format('preempt')}'",),
        LoadError,
        f"nvidia was built for another kernel: its version magic is '{MAGIC.format('pree_pt')}', "
        f"this kernel wants '{MAGIC.format('preempt')}'",
    ),
    "symbol version": (
        INSERT + "Invalid argument\n",
        ("nvidia: disagrees about version of symbol kfree", UNKNOWN.format("kfree", -22)),
        LoadError,
        "nvidia was built against another kernel: it disagrees about the version of kfree",
    ),
    "module_layout": (
        INSERT + "Exec format error\n",
        ("nvidia: disagrees about version of symbol module_layout",),
        LoadError,
        "nvidia was built against another kernel: it disagrees about the version of module_layout",
    ),
    "no symbol version": (
        INSERT + "Invalid argument\n",
        ("nvidia: no symbol version for _printk", UNKNOWN.format("_printk", -22)),
        LoadError,
        "nvidia has no version of _printk, and this kernel wants one",
    ),
    "unknown symbol": (
        INSERT + "Unknown symbol in module, or unknown parameter (see dmesg)\n",
        tuple(UNKNOWN.format(f"symbol{number}", -2) for number in range(7)),
        LoadError,
        "nvidia needs symbols that neither this kernel nor a loaded module has: "
        "symbol0, symbol1, symbol2, symbol3, symbol4 and 2 more",
    ),
    "namespace": (
        INSERT + "Invalid argument\n",
        (
            "nvidia: module uses symbol (dma_buf_put) from namespace DMA_BUF, but does not import it.",
            UNKNOWN.format("dma_buf_put", -22),
        ),
        LoadError,
        "nvidia uses dma_buf_put of the symbol namespace DMA_BUF, which it does not import",
    ),
    "GPL-only and proprietary (kernel/module/main.c)": (
        INSERT + "Invalid argument\n",
        ("nvidia: module using GPL-only symbols uses symbols x from proprietary module other.",),
        LoadError,
        "nvidia uses GPL-only symbols and x of the proprietary other: this kernel forbids that",
    ),
    "parameter": (
        INSERT + "Invalid argument\n",
        ("nvidia: `abc' invalid for parameter `NVreg_EnableMSI'",),
        UsageError,
        "nvidia refuses the value 'abc' of its parameter NVreg_EnableMSI",
    ),
    "architecture": (
        INSERT + "Exec format error\n",
        ("Invalid architecture in ELF header: 183",),
        LoadError,
        "the kernel cannot read nvidia: Invalid architecture in ELF header: 183",
    ),
    "BTF (kernel/module/btf)": (
        INSERT + "Invalid argument\n",
        ("failed to validate module [nvidia] BTF: -22",),
        LoadError,
        "nvidia carries type information (BTF) of another kernel",
    ),
    "format, silent": (
        INSERT + "Exec format error\n",
        (),
        LoadError,
        "nvidia is not in the format that this kernel loads",
    ),
    "unsigned": (
        REJECTED,
        ("Loading of unsigned module is rejected",),
        SigningError,
        "nvidia is unsigned, or was stripped after signing, and this kernel takes signed modules only",
    ),
    "unknown key": (
        REJECTED,
        ("Loading of module with unavailable key is rejected",),
        SigningError,
        "nvidia is signed with a key that this kernel does not trust",
    ),
    "unknown digest": (
        REJECTED,
        ("Loading of module with unsupported crypto is rejected",),
        SigningError,
        "nvidia is signed with a digest or a cipher that this kernel does not have",
    ),
    "changed after signing": (
        REJECTED,
        (),
        SigningError,
        "the kernel rejected the signature of nvidia: it is not of these bytes, or not of a trusted key",
    ),
    "lockdown": (
        INSERT + "Operation not permitted\n",
        (LOCKDOWN,),
        SigningError,
        "nvidia has no signature that this kernel trusts, and the kernel is locked down",
    ),
    "privileges": (
        INSERT + "Operation not permitted\n",
        (),
        LoadError,
        "this process may not load nvidia",
    ),
    "no memory": (
        INSERT + "Cannot allocate memory\n",
        (),
        LoadError,
        "the kernel has no memory to load nvidia",
    ),
    "stub": (
        INSERT + "Invalid argument\n",
        (
            "nvidia-peermem nv_mem_client_init:556 ERROR "
            "module compiled without IB peer memory symbols present",
        ),
        LoadError,
        "nvidia is a stub: it was built without MOFED's symbols",
    ),
    "absent": (
        "modprobe: FATAL: Module nvidia not found in directory /run/root/lib/modules/6.1.0-47-amd64\n",
        (),
        LoadError,
        "modprobe does not find nvidia in /run/root/lib/modules/6.1.0-47-amd64",
    ),
    "busy": (
        INSERT + "Device or resource busy\n",
        (),
        LoadError,
        "nvidia is being loaded or unloaded by somebody else",
    ),
    "no memory region (nv-pci.c)": (
        ENODEV,
        (
            "NVRM: This PCI I/O region assigned to your NVIDIA device is invalid:",
            "NVRM: BAR1 is 0M @ 0x0 (PCI:0000:01:00.0)",
        ),
        LoadError,
        "a GPU has no usable memory region: This PCI I/O region assigned to your NVIDIA device is invalid",
    ),
    "legacy (nv-pci.c)": (
        ENODEV,
        ("NVRM: ignoring the legacy GPU 0000:01:00.0",),
        NoGpuError,
        "GPU 0000:01:00.0 is no longer supported by this driver",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_each_cause_has_its_error(case: tuple[str, tuple[str, ...], Type[NvdriverError], str]) -> None:
    """Words and log together give the error's class, a message with the values, and a hint."""
    words, log, error, message = case
    said = diagnose(Failure("nvidia", words, log, (GPU,), (TAKEN,)))
    assert (type(said), said.message) == (error, message)
    assert said.hint


def test_every_cause_is_tried() -> None:
    """No row of the table is without a case, but one that no machine at hand can show."""
    texts = ["\n".join((*log, words)).replace("\nNVRM:", "") for words, log, _, _ in CASES.values()]
    untried = [cause.message for cause in CAUSES if not any(re.search(cause.pattern, text) for text in texts)]
    assert untried == ["a GPU is not supported by proprietary nvidia.ko: it requires the open modules"]


def test_several_gpus_are_all_named() -> None:
    """Where two GPUs have one trouble, the message has both."""
    second = tuple(line.replace("0001:00:00.0", "0001:00:01.0") for line in OFF_THE_BUS)
    said = diagnose(Failure("nvidia", ENODEV, (*OFF_THE_BUS, *second, *PROBED_NONE), (GPU,)))
    assert said.message.startswith("GPU 0001:00:00.0, 0001:00:01.0 (10de:2330) has fallen off the bus")


def test_dependency_that_fails_is_the_one_named() -> None:
    """modprobe names the module that was asked for, the kernel the one that failed: that is told."""
    words = "modprobe: ERROR: could not insert 'nvidia_uvm': Exec format error\n"
    said = diagnose(Failure("nvidia_uvm", words, ("nvidia: version magic 'a ' should be 'b '",)))
    assert said.message.startswith("nvidia was built for another kernel")


def test_silent_kernel_is_helped_by_pci() -> None:
    """Where the log cannot be read, `No such device` means what the PCI bus shows."""
    assert isinstance(diagnose(Failure("nvidia", ENODEV, ())), NoGpuError)
    claimed = diagnose(Failure("nvidia", ENODEV, (), (GPU,), (TAKEN,)))
    assert claimed.message == (
        "NVIDIA's driver is kept from a GPU: 0001:00:00.0 (10de:2330) is bound to pci-stub"
    )
    free = diagnose(Failure("nvidia", ENODEV, (), (GPU,)))
    assert type(free) is LoadError
    assert free.message == (
        f"nvidia was not loaded: {ENODEV.strip()}; the kernel said: nothing that can be read here"
    )


def test_gpu_that_nobody_seems_to_hold() -> None:
    """A driver_override keeps a GPU from ours without a driver that could be named."""
    said = diagnose(Failure("nvidia", ENODEV, NOT_CALLED, (GPU,)))
    assert said.message.endswith("another driver, or a driver_override, has it")


def test_unknown_trouble_is_told_in_full() -> None:
    """What no row explains is a LoadError with modprobe's words and the last of the log."""
    said = diagnose(Failure("nvidia", "Bus error {0}", ("a {line}", "another %s"), (GPU,)))
    assert said.message == "nvidia was not loaded: Bus error {0}; the kernel said: a {line}; another %s"


@given(st.text(), st.lists(st.text(), max_size=4))
def test_no_text_breaks_the_diagnosis(words: str, log: list[str]) -> None:
    """Whatever modprobe and the kernel say, there is an error to tell, never another one."""
    assert isinstance(diagnose(Failure("nvidia", words, tuple(log))), NvdriverError)
    assert isinstance(notices("nvidia", log, ()), tuple)


def test_what_a_kernel_says_of_modules_that_it_loads() -> None:
    """A module may load and yet miss a parameter, taint the kernel, or leave a GPU out: each is a notice."""
    log = (
        "nvidia: module verification failed: signature and/or required key missing - tainting kernel",
        "nvidia: unknown parameter 'NVreg_Foo' ignored",
        *OFF_THE_BUS,
        "NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  535.261.03  Release Build",
    )
    assert notices("nvidia", log, ()) == (
        "GPU 0001:00:00.0 (10de:2330) has fallen off the bus: it does not answer",
        "nvidia has no parameter NVreg_Foo: ignored",
        "nvidia has no signature that this kernel trusts: it was loaded, and the kernel is tainted",
    )
    assert notices("nvidia", log[-1:], (TAKEN,)) == ()


def test_messages_ask_for_values_that_their_patterns_have() -> None:
    """Each message can be filled: a typing error in the table would be a traceback on a node."""
    for cause in (*CAUSES, *NOTICES):
        groups = re.compile(cause.pattern).groupindex
        cause.message.format(module="m", claims="c", **dict.fromkeys(groups, "v"))


def test_record_of_the_kernel_log() -> None:
    """Header and properties are left out, escaped bytes are bytes again, a record may hold several lines."""
    record = b"6,1234,5678,-;NVRM: one\\x0aNVRM: caf\\xc3\\xa9\\x5c\n SUBSYSTEM=pci\n DEVICE=+pci:1\n"
    assert parse_record(record) == ("NVRM: one", "NVRM: caf\u00e9\\")
    assert parse_record(b"no header at all") == ()


def test_log_that_cannot_be_read_is_silent(tmp_path: Path) -> None:
    """No device, or no permission: no lines, and no error."""
    with KernelLog(tmp_path / "absent").follow() as read:
        assert read() == ()


def test_real_log_gives_what_came_since() -> None:
    """Only what the kernel logs after the mark is read, each line once."""
    device = Path("/dev/kmsg")
    if not os.access(device, os.R_OK | os.W_OK):
        pytest.skip("the kernel log of this machine is not ours to write to")
    mark = f"nvdriver-build test {os.getpid()}"
    device.write_text(f"{mark} before\n")
    with KernelLog().follow() as read, contextlib.suppress(OSError):
        device.write_text(f"{mark} after \u00e9\n")
        lines = [line for line in read() if line.startswith(mark)]
        assert lines == [f"{mark} after \u00e9"]
        assert [line for line in read() if line.startswith(mark)] == []

"""UEFI firmware for the VM, with Secure Boot that enforces: Debian's OVMF and variables of our own.

    firmware = secure_boot(folder, [keys.certificate])          # 0.4 s
    Machine(kernel, busybox, folder, firmware=firmware)         # boots in about 12 s

The certificates are in the firmware's db, which the kernel's keyring .platform is made of; Debian's and
RHEL's kernels ask it for modules. The kernel is given by -kernel, so the firmware's own check of it is not
tested here: what is, is what a kernel does that finds Secure Boot on.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import List, Sequence

from attrs import frozen

_OVMF = Path("/usr/share/OVMF")
_GUID = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
"""Names the owner of a variable's entry; any will do."""


@frozen
class Firmware:
    """Code, and a copy of the variables that the VM may write to."""

    code: Path
    variables: Path

    def arguments(self) -> List[str]:
        """QEMU's words for it; the machine has to be q35 with smm=on."""
        drive = "if=pflash,format=raw"
        return [
            *("-global", "driver=cfi.pflash01,property=secure,value=on"),
            *("-drive", f"{drive},unit=0,readonly=on,file={self.code}"),
            *("-drive", f"{drive},unit=1,file={self.variables}"),
        ]


def secure_boot(folder: Path, trusted: Sequence[Path]) -> Firmware:
    """Firmware in `folder` that enforces Secure Boot; `trusted` are the certificates (PEM) in its db.

    CalledProcessError where virt-fw-vars fails.
    """
    variables = folder / "variables.fd"
    program = Path(sys.executable).with_name("virt-fw-vars")
    argv = [str(program), "-i", str(_OVMF / "OVMF_VARS_4M.fd"), "-o", str(variables), "--sb"]
    argv += ["--set-pk", _GUID, str(trusted[0]), "--add-kek", _GUID, str(trusted[0])]
    for certificate in trusted:
        argv += ["--add-db", _GUID, str(certificate)]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return Firmware(_OVMF / "OVMF_CODE_4M.secboot.fd", variables)

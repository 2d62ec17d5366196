"""Everything that can go wrong, as one tree; docs/troubleshooting.md explains each exit code.

NvdriverError                 1   a bug, if nothing more precise was raised
├── UsageError                2   wrong usage or configuration
├── HeadersError              10  no kernel headers, or no usable ones
│   ├── HeadersMismatch       10  headers of another kernel than the one meant
│   ├── WrongVersion          10  the pod is for another RHCOS than the node runs
│   └── CompilerMismatch      10  no compiler, or one of another major version
├── SourceError               11  driver source missing, damaged or not NVIDIA's
├── BuildError                12  the build failed
├── FitError                  13  modules do not fit the kernel
│   └── ModuleFormatError     13  a file is not a kernel module that can be trusted
├── SigningError              14  signature missing or not accepted
│   ├── CannotVerify          14  nothing is known of a signature: it could not be looked at
│   └── NoSigningKey          14  only signed modules are taken, and nothing here can sign
├── LoadError                 15  the kernel did not take the modules
├── InUseError                16  the driver is in use
├── StoreError                17  store or registry
│   └── CannotRead            17  nothing is known of a set: it could not be read now
├── ToolkitError              18  the DTK sidecar failed or went silent
├── NoGpuError                19  nothing to drive
└── ClusterError              20  the cluster's API
"""

from __future__ import annotations

from typing import Optional


class NvdriverError(Exception):
    """Root of all errors of this package.

    `str()` of it says what happened, with the values; `hint` says what would mend it.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: Optional[str] = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def kind(self) -> str:
        """The name that documents and JSON use for this error."""
        return type(self).__name__

    def document(self) -> dict[str, object]:
        """The `error` object of contracts.md, JSON documents."""
        return {"code": self.exit_code, "kind": self.kind, "message": self.message, "hint": self.hint}


class Stopped(BaseException):
    """A signal asked for the end. Like KeyboardInterrupt, no handler of errors may swallow it."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"ended by signal {signal}")
        self.signal = signal


class UsageError(NvdriverError):
    """Wrong usage or configuration."""

    exit_code = 2


class HeadersError(NvdriverError):
    """No kernel headers, or headers that cannot be used."""

    exit_code = 10


class HeadersMismatch(HeadersError):
    """The headers belong to another kernel than the one meant."""


class WrongVersion(HeadersError):
    """The pod, and so the toolkit in it, is for another RHCOS version than the node runs."""


class CompilerMismatch(HeadersError):
    """No compiler, or one whose major version is not the kernel's."""


class SourceError(NvdriverError):
    """The driver source is missing, damaged, or not NVIDIA's."""

    exit_code = 11


class BuildError(NvdriverError):
    """Compiling or linking the modules failed."""

    exit_code = 12


class FitError(NvdriverError):
    """The modules do not fit the kernel."""

    exit_code = 13


class ModuleFormatError(FitError):
    """A file is not a kernel module, or is damaged."""


class SigningError(NvdriverError):
    """A signature is missing, or the kernel would not accept it."""

    exit_code = 14


class CannotVerify(SigningError):
    """A signature could not be looked at: no program for it, no space, no time."""


class NoSigningKey(SigningError):
    """The kernel takes signed modules only; there is no signed set, and no key here to sign one."""


class LoadError(NvdriverError):
    """The kernel did not take the modules."""

    exit_code = 15


class InUseError(NvdriverError):
    """The driver cannot be unloaded or replaced, since it is in use."""

    exit_code = 16


class StoreError(NvdriverError):
    """A store of module sets cannot be read or written."""

    exit_code = 17


class CannotRead(StoreError):
    """A module set could not be read: no memory, too many open files, a disk or a server that fails."""


class ToolkitError(NvdriverError):
    """The Driver Toolkit sidecar failed or went silent."""

    exit_code = 18


class NoGpuError(NvdriverError):
    """There is no NVIDIA GPU that this driver could drive."""

    exit_code = 19


class ClusterError(NvdriverError):
    """The cluster's API refused or cannot be reached."""

    exit_code = 20

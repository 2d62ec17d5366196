"""The compiler rule: the kernel's own compiler, or one of the same major version.

NVIDIA's conftest.sh (cc_version_check) has the same rule, IGNORE_CC_MISMATCH switches it off.
"""

from __future__ import annotations

import re
from typing import Optional

from attrs import frozen

from nvdriver_build.commands import CommandError, Commands
from nvdriver_build.errors import CompilerMismatch
from nvdriver_build.kernel.target import KernelTarget

_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")


@frozen
class Compiler:
    """`command` is the program's name, `text` the first line of its `--version`.

    `same` tells that it is of the kernel's own version, `mismatch` that it is of another major one.
    """

    command: str
    text: str
    same: bool
    mismatch: bool


def find_compiler(target: KernelTarget, commands: Commands, *, allow_mismatch: bool = False) -> Compiler:
    """The compiler to build with; CompilerMismatch where there is none, or one of another major version."""
    wanted = target.compiler or ""
    major = _major(wanted)
    for command in _candidates(wanted, major):
        text = _text(command, commands)
        if text is None:
            continue
        mismatch = major is not None and _major(text) != major
        if mismatch and not allow_mismatch:
            raise CompilerMismatch(
                f"the compiler {command} is {text!r}; kernel {target.release} was built with {wanted!r}",
                hint=f"install gcc {major}, or set NVDRIVER_COMPILER_MISMATCH=allow at your own risk",
            )
        return Compiler(command, text, _version(text) == _version(wanted), mismatch)
    raise CompilerMismatch(
        f"no compiler found: looked for {', '.join(_candidates(wanted, major))} on PATH",
        hint=f"install the compiler of the kernel: {wanted or 'gcc'}",
    )


def _candidates(wanted: str, major: Optional[str]) -> list[str]:
    named = wanted.split(" ", 1)[0]
    family = "clang" if "clang" in wanted else "gcc"
    names = [named, f"{family}-{major}" if major else "", family, "cc"]
    # The name comes from a file: only a plain program name is ever started.
    return list(dict.fromkeys(name for name in names if re.fullmatch(r"[A-Za-z0-9_.+-]+", name)))


def _text(command: str, commands: Commands) -> Optional[str]:
    try:
        finished = commands.run([command, "--version"], timeout=10)
    except CommandError:
        return None
    return finished.stdout.splitlines()[0] if finished.ok and finished.stdout else None


def _version(text: str) -> Optional[str]:
    """The version in a compiler's text: the last plain one outside parentheses, as 12.2.0."""
    found = _VERSION.search(re.sub(r"\([^)]*\)", " ", text))
    return found.group(0) if found else None


def _major(text: str) -> Optional[str]:
    version = _version(text)
    return version.split(".")[0] if version else None

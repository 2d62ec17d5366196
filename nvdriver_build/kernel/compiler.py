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
    """The compiler to build with: the first on PATH of the kernel's own major version.

    Raises CompilerMismatch where there is none; with `allow_mismatch` another one will do.
    """
    wanted = target.compiler or ""
    names = _candidates(wanted)
    others = []
    for command in names:
        text = compiler_text(command, commands)
        if text is not None:
            found = _compare(command, text, wanted)
            if not found.mismatch:
                return found
            others.append(found)
    if not others:
        raise CompilerMismatch(
            f"no compiler found: looked for {', '.join(names)} on PATH",
            hint=f"install the compiler of the kernel: {wanted or 'gcc'}",
        )
    if allow_mismatch:
        return others[0]
    raise CompilerMismatch(
        f"the compiler {others[0].command} is {others[0].text!r}; "
        f"kernel {target.release} was built with {wanted!r}",
        hint=f"install {' '.join(filter(None, _family(wanted)))}, "
        "or set NVDRIVER_COMPILER_MISMATCH=allow at your own risk",
    )


def _compare(command: str, text: str, wanted: str) -> Compiler:
    known = _version(wanted) is not None
    return Compiler(
        command=command,
        text=text,
        same=_version(text) == _version(wanted),
        mismatch=known and _family(text) != _family(wanted),
    )


def _candidates(wanted: str) -> list[str]:
    named = wanted.split(" ", 1)[0]
    family, major = _family(wanted)
    names = [named, f"{family}-{major}" if major else "", family, "cc"]
    # The name comes from a file: only a plain program name is ever started.
    return list(dict.fromkeys(name for name in names if re.fullmatch(r"[A-Za-z0-9_.+-]+", name)))


def compiler_text(command: str, commands: Commands) -> Optional[str]:
    """The first line of a compiler's `--version`; None where it does not run."""
    try:
        finished = commands.run([command, "--version"], timeout=10)
    except CommandError:
        return None
    return finished.stdout.splitlines()[0] if finished.ok and finished.stdout else None


def _version(text: str) -> Optional[str]:
    """The version in a compiler's text: the first outside parentheses, as 12.2.0."""
    found = _VERSION.search(re.sub(r"\([^)]*\)", " ", text))
    return found.group(0) if found else None


def _family(text: str) -> tuple[str, Optional[str]]:
    """The compiler's name and its major version, as gcc and 12."""
    version = _version(text)
    return "clang" if "clang" in text else "gcc", version.split(".")[0] if version else None

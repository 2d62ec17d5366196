"""Module parameters: from the files that an administrator mounts to the options that modprobe gets.

The files are NVIDIA's: /drivers/nvidia.conf and so on, each line one or more `name=value` for that module.
A line is data. What could leave its place in modprobe.d(5) is refused: kmod joins a line that ends in a
backslash with the next one and drops every other backslash; a control character could end the line.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Iterable, Mapping, Optional

from nvdriver_build.elf import ModuleFacts, canonical_name
from nvdriver_build.errors import UsageError

FILES = ("nvidia.conf", "nvidia-uvm.conf", "nvidia-modeset.conf", "nvidia-peermem.conf")
"""The files that NVIDIA's driver container reads."""
NVIDIA_DEFAULT = "NVreg_CoherentGPUMemoryMode=driver"
"""Comes before the administrator's own: the memory of coherent GPUs is then no NUMA node (from 580 on)."""

Parameters = Mapping[str, tuple[str, ...]]
"""By a module's canonical name its parameters in order; of two with one name the kernel takes the last."""

_TOKEN = re.compile(r'(?:[^\s"]|"[^"]*")+')
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*(?==|\Z)")


def read_parameters(folder: Path) -> Parameters:
    """The parameters in the files that `folder` has; UsageError, naming file and line, for a bad line."""
    read = {canonical_name(Path(name).stem): _read_file(folder / name) for name in FILES}
    return {module: tokens for module, tokens in read.items() if tokens}


def _read_file(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path}: cannot be read as module parameters: {error}",
            hint="it has to be a file of UTF-8 text that this user may read",
        ) from error
    lines = enumerate(text.split("\n"), 1)
    return tuple(token for number, line in lines for token in parse_line(line, f"{path}, line {number}"))


def parse_line(line: str, where: str) -> tuple[str, ...]:
    """The parameters of one line, none where it is blank or starts with `#`; UsageError for other text."""
    text = line.strip()
    if not text or text.startswith("#"):
        return ()
    flaw = _flaw(text)
    if flaw:
        raise UsageError(
            f"{where}: {line!r} is not a module parameter: {flaw}",
            hint='write name=value, or name="value with blanks", as in NVreg_EnableMSI=1',
        )
    return tuple(_TOKEN.findall(text))


def _flaw(text: str) -> Optional[str]:
    if not text.replace("\t", " ").isprintable():
        return "it has a control character"
    if "\\" in text:
        return "it has a backslash"
    if text.count('"') % 2:
        return "a quote is not closed"
    if any("\t" in quoted for quoted in re.findall(r'"[^"]*"', text)):
        return "it has a tab in quotes, which modprobe would make a blank"
    if re.match(r"options\s", text):
        return "it is a line of modprobe.d, and here the file names the module: leave out 'options MODULE'"
    bad = [token for token in _TOKEN.findall(text) if not _NAME.match(token)]
    return f"{bad[0]!r} does not start with a name" if bad else None


def for_modules(parameters: Parameters, modules: Iterable[ModuleFacts]) -> tuple[Parameters, tuple[str, ...]]:
    """What these modules are loaded with, NVIDIA's default included, and a sentence for each name they lack.

    The kernel ignores a parameter that a module does not have and says so in its log only.
    """
    chosen = {}
    notices = []
    for facts in modules:
        known = _known(facts)
        tokens = parameters.get(facts.name, ())
        if facts.name == "nvidia" and _parameter(NVIDIA_DEFAULT) in known:
            tokens = (NVIDIA_DEFAULT, *tokens)
        if tokens:
            chosen[facts.name] = tokens
        unknown = [token for token in tokens if _parameter(token) not in known]
        notices += [f"{facts.name} has no parameter {token.split('=')[0]}: ignored" for token in unknown]
    return chosen, tuple(notices)


def modprobe_options(parameters: Parameters) -> str:
    """The text of a modprobe.d file with these parameters and nothing else."""
    return "".join(f"options {module} {' '.join(tokens)}\n" for module, tokens in sorted(parameters.items()))


def _known(facts: ModuleFacts) -> frozenset[str]:
    """The names in .modinfo: `parmtype=name:type`, and `parm=name:text` where there is a description."""
    values = (*facts.all("parmtype"), *facts.all("parm"))
    return frozenset(_parameter(value.split(":")[0]) for value in values)


def _parameter(token: str) -> str:
    """The name as the kernel compares it, with `-` equal to `_` (parameq, kernel/params.c)."""
    return token.split("=")[0].replace("-", "_")

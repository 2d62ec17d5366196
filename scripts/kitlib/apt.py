"""apt with its state in one folder, on the mirror that this machine's own apt uses."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import List, Mapping, NamedTuple, Optional, Sequence, Tuple

_CODENAMES = "bookworm|trixie|forky|sid|oldstable|stable|testing|unstable"
_KEYRINGS = [Path("/usr/share/keyrings/debian-archive-keyring" + end) for end in (".gpg", ".pgp")]
_HOOKS = ("APT::Update::Pre-Invoke", "APT::Update::Post-Invoke", "APT::Update::Post-Invoke-Success")
_WANTED = r"^Package: (?:linux-(?:image|headers|kbuild)-6\.|nvidia-(?:open-)?kernel-source$|busybox-static$)"


class KitError(Exception):
    """What went wrong, and what would mend it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Package(NamedTuple):
    """One version of a package, as a Packages file lists it. Size in bytes."""

    name: str
    version: str
    arch: str
    depends: str
    size: int


def run(argv: Sequence[str], env: Optional[Mapping[str, str]] = None, cwd: Optional[Path] = None) -> str:
    """The output of a program; KitError with its last lines if it fails."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    try:
        done = subprocess.run(
            argv,
            env={**os.environ, "PATH": path, "LC_ALL": "C.UTF-8", **(env or {})},
            cwd=cwd,
            text=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
    except FileNotFoundError as error:
        hint = "the kit needs apt, dpkg and kmod of Debian or Ubuntu"
        raise KitError(f"{argv[0]} is not installed", hint) from error
    if done.returncode:
        said = (done.stdout + done.stderr)[-2000:]
        raise KitError(f"{' '.join(argv[:4])} ended with {done.returncode}:\n{said}")
    return done.stdout


def mirrors(given: Optional[str]) -> List[Tuple[str, str]]:
    """(URI, '' or '-security') of the Debian repositories to ask.

    `given` is one URI, or that and the URI of the security archive; without it they are those of this
    machine's own apt configuration. KitError if there is none.
    """
    known = list(zip(given.split(), ("", "-security"))) if given else _machine_mirrors()
    if not any(suffix == "" for _, suffix in known):
        raise KitError(
            "this machine's apt knows no Debian repository",
            "name a Debian mirror: --mirror 'URI [SECURITY_URI]', or the same in KIT_MIRROR",
        )
    return known


def _machine_mirrors() -> List[Tuple[str, str]]:
    """By origin, since others' repositories may be called 'bookworm main' too.

    Before the first apt-get update apt knows no origin: then by name.
    """
    form = ["indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)"]
    for more in ([], ["--no-release-info"]):
        lines = run(["apt-get", *form, *more, "Created-By: Packages"]).splitlines()
        found = {_debian(*line.split(" ", 3)) for line in lines} - {None}
        if found:
            return sorted(f for f in found if f)
    return []


def _debian(uri: str, release: str, component: str, origin: str) -> Optional[Tuple[str, str]]:
    match = re.fullmatch(f"(?:{_CODENAMES})(-security)?", release)
    ours = match and component == "main" and origin in ("Debian", "$(ORIGIN)")
    return (uri, match[1] or "") if match and ours else None


class Apt:
    """The host's proxies hold; its sources, lists, cache, pins and hooks do not."""

    def __init__(self, root: Path, repositories: List[Tuple[str, str]], arches: Sequence[str]) -> None:
        for folder in ("lists/partial", "cache/archives/partial"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / "sources.list").write_text(_sources(repositories, arches))
        (root / "status").touch()
        (root / "apt.conf").write_text(_configuration(root, arches))
        # apt reads APT_CONFIG, then the host's apt.conf.d, then Dir::Etc::main: ours has to be last.
        (root / "first.conf").write_text(f'Dir::Etc::main "{root}/apt.conf";\n')
        self._env = {"APT_CONFIG": str(root / "first.conf")}

    def update(self) -> None:
        """Fetch the lists, all of them: with half of them the choice of kernels would be another one."""
        try:
            run(["apt-get", "-q", "-o", "APT::Update::Error-Mode=any", "update"], self._env)
        except KitError as error:
            raise KitError(
                str(error), "see apt/sources.list in the kit's folder, or name another --mirror"
            ) from error

    def packages(self) -> List[Package]:
        """Every offered version of the packages that a kit may hold."""
        form = ["--format", "$(FILENAME)", "Created-By: Packages"]
        listed = run(["apt-get", "indextargets", *form], self._env)
        files = [name for name in listed.splitlines() if Path(name).exists()]
        text = run(["/usr/lib/apt/apt-helper", "cat-file", *files], self._env) if files else ""
        found = []
        for match in re.finditer(_WANTED, text, re.M):
            stanza = text[match.start() : text.index("\n\n", match.start())]
            field = dict(re.findall(r"^(\w+): (.*)$", stanza, re.M))
            version, arch, depends = field["Version"], field["Architecture"], field.get("Depends", "")
            found.append(Package(field["Package"], version, arch, depends, int(field["Size"])))
        return found

    def download(self, packages: Sequence[Package], folder: Path) -> None:
        """Fetch and check the packages into `folder`."""
        names = [f"{p.name}{'' if p.arch == 'all' else ':' + p.arch}={p.version}" for p in packages]
        if names:
            run(["apt-get", "-q", "download", *names], self._env, folder)

    def download_closure(self, names: Sequence[str], folder: Path) -> None:
        """Fetch and check the packages and all that they depend on."""
        (folder / "partial").mkdir(parents=True)
        options = ["--no-install-recommends", "--download-only", "-o", f"Dir::Cache::archives={folder}"]
        run(["apt-get", "-q", "-y", *options, "install", *names], self._env)


def _sources(repositories: List[Tuple[str, str]], arches: Sequence[str]) -> str:
    keyring = next((k for k in _KEYRINGS if k.exists()), None)
    if keyring is None:
        raise KitError(f"no Debian archive keys ({_KEYRINGS[0]})", "install debian-archive-keyring")
    lines = []
    for uri, suffix in repositories:
        suites = [(f"bookworm{suffix} main", ",".join(arches))]
        if not suffix:
            suites += [("bookworm contrib non-free", "amd64"), ("trixie contrib", "amd64")]
        for suite, archs in suites:
            lines.append(f"deb [arch={archs} target=Packages signed-by={keyring}] {uri} {suite}\n")
    return "".join(lines)


def _configuration(root: Path, arches: Sequence[str]) -> str:
    values = {
        "Dir::State": f"{root}/",
        "Dir::State::lists": "lists/",
        "Dir::State::status": f"{root}/status",
        "Dir::Cache": f"{root}/cache/",
        "Dir::Etc::SourceList": f"{root}/sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "APT::Architecture": "amd64",
        "APT::Sandbox::User": "root",  # _apt cannot reach a folder below a home
    }
    text = '#include "/etc/apt/apt.conf";\n' if Path("/etc/apt/apt.conf").exists() else ""
    text += "".join(f"#clear {name};\n" for name in (*_HOOKS, "APT::Architectures"))
    text += "".join(f'{name} "{value}";\n' for name, value in values.items())
    return text + "".join(f'APT::Architectures:: "{arch}";\n' for arch in arches)

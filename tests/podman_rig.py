"""podman for tests: root, runc, a storage of its own in the user's cache, nothing left running.

podman = Podman(CACHE / "podman")
podman.run("--rootfs", f"{root}:O", "gcc", "--version").stdout

The configuration is what works on machines with the hybrid cgroups of Debian 12 and without network tools.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator

import filelock
from attrs import frozen
from bundled import ROOT

_CONFIGURATION = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
netns = "none"
log_driver = "k8s-file"
pids_limit = 0
init_path = "{init}"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
helper_binaries_dir = ["{helpers}"]
[network]
network_backend = "cni"
"""
_WRAPPER = """\
#!/bin/sh
CONTAINERS_CONF='{folder}/containers.conf' exec '{podman}' --root '{folder}/storage' \\
    --runroot '{folder}/run' --tmpdir '{folder}/tmp' "$@"
"""
_REPOSITORY = "localhost/nvdriver-build-tests"


@frozen
class Podman:
    """One storage in `folder`, for several processes at once: name containers, remove them by name."""

    folder: Path

    @property
    def program(self) -> Path:
        """A script that takes podman's arguments: for scripts of ours that start podman."""
        return self.folder / "podman"

    @contextlib.contextmanager
    def used(self) -> Iterator[Podman]:
        """While tests run. The first takes away what a killed run has left, the last all there is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "users").open("w") as users:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._configure()
                self.clean()
            fcntl.flock(users, fcntl.LOCK_SH)
            yield self
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.clean()

    def _configure(self) -> None:
        init = Path(shutil.which("catatonit") or "/usr/bin/catatonit")
        configuration = _CONFIGURATION.format(init=init, helpers=init.parent)
        (self.folder / "containers.conf").write_text(configuration)
        self.program.write_text(_WRAPPER.format(folder=self.folder, podman=shutil.which("podman")))
        self.program.chmod(0o755)

    def clean(self) -> None:
        """No container, no pod, no volume; images that have a name stay."""
        for words in ("pod rm -fa -t 0", "rm -fa -t 0", "volume rm -fa", "image prune -f"):
            self(*words.split(), check=False)

    def __call__(
        self, *words: object, check: bool = True, timeout: float = 300, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run podman. Where it fails and `check` is set: AssertionError with what it said."""
        argv = [str(self.program), *map(str, words)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False, **more)
        assert not check or done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def run(self, *words: object, **more: Any) -> subprocess.CompletedProcess[str]:
        """`podman run --rm` without network."""
        return self("run", "--rm", "--network", "none", *words, **more)

    def has(self, image: str) -> bool:
        """Whether there is such an image."""
        return self("image", "exists", image, check=False).returncode == 0

    def base_image(self, name: str, root: Path, *leave_out: str) -> str:
        """A root file system as an image, imported once; `leave_out` are patterns of tar's."""
        mark = f"{root} {root.stat().st_ino} {root.stat().st_mtime_ns} {leave_out}"
        image = f"{_REPOSITORY}/{name}:{hashlib.sha256(mark.encode()).hexdigest()[:16]}"
        pack = ["tar", "-C", str(root), *(f"--exclude={pattern}" for pattern in leave_out), "-c", "."]
        with self._missing(name, image) as missing:
            if missing:
                with subprocess.Popen(pack, stdout=subprocess.PIPE) as tar:
                    self("import", "-q", "-", image, stdin=tar.stdout)
        return image

    def driver_image(self, name: str, key: str, *words: object) -> str:
        """What `scripts/build-image WORDS` makes, made once for each state of the code and of `key`."""
        image = f"{_REPOSITORY}/{name}:{_digest(key)}"
        with self._missing(name, image) as missing:
            if missing:
                done = self.build_image("--tag", image, *words)
                assert done.returncode == 0, done.stderr
        return image

    @contextlib.contextmanager
    def _missing(self, name: str, image: str) -> Iterator[bool]:
        """Whether the image has to be made; those of another state of the code are gone then."""
        with filelock.FileLock(f"{self.folder}/{name}.lock"):
            missing = not self.has(image)
            if missing:
                self.forget(f"{_REPOSITORY}/{name}")
            yield missing

    def build_image(self, *words: object) -> subprocess.CompletedProcess[str]:
        """Run the program of scripts/build-image with this podman."""
        given = (ROOT / "scripts/build_image.py", "--builder", self.program, *words)
        argv = [sys.executable, *map(str, given)]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=600)

    def forget(self, repository: str) -> None:
        """Remove all images of a repository, whose tag was of another state."""
        listed = self("images", "-q", "--filter", f"reference={repository}").stdout.split()
        if listed:
            self("rmi", "-f", *sorted(set(listed)), check=False)


def _digest(key: str) -> str:
    """Of all that goes into an image."""
    digest = hashlib.sha256(key.encode())
    for top in ("nvdriver_build", "container", "scripts/bundle.py", "scripts/build_image.py"):
        place = ROOT / top
        for path in [place] if place.is_file() else sorted(place.rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                digest.update(str(path).encode() + path.read_bytes())
    return digest.hexdigest()[:16]

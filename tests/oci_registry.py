"""Debian's docker-registry on loopback, with a CA of its own and a login; and what to reach it with."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import pytest

from nvdriver_build.commands import Commands, SystemCommands
from nvdriver_build.registry import Limits, Registry, open_registry

USER, PASSWORD = "node", "secret-of-tests"
_HTPASSWD = f"{USER}:$2b$04$hbi0rG0oD8d4tuuWM.l.deEzhxKwxxsxtd7.2XE7nHZPCJ9XLVYBa"
"""bcrypt of the above; its least cost, since a registry compares it at every request."""
_SERVED = re.compile(r'"(\w+) \S+ HTTP/1\.1" \d+ (\d+)')
QUICK = Limits(connect=2, silence=2, answer=20, attempts=2, pause=0.05)


class OciRegistry(NamedTuple):
    """A registry that runs: address, its CA's certificate, a login as auth.json, and where its files are."""

    host: str
    authority: Path
    auth: Path
    root: Path

    def open(
        self,
        repository: str = "drivers/nvidia",
        commands: Optional[Commands] = None,
        limits: Limits = QUICK,
        **options: Any,
    ) -> Registry:
        """Our client of it."""
        given: Dict[str, Any] = {"authority": self.authority, "auth": self.auth, **options}
        return open_registry(
            f"{self.host}/{repository}", commands or SystemCommands(), limits=limits, **given
        )

    @property
    def log(self) -> str:
        """What it has logged, a line for each request."""
        return (self.root / "log").read_text()

    @property
    def served(self) -> List[Tuple[str, int]]:
        """The method of each request, and the bytes of its answer."""
        return [(method, int(size)) for method, size in _SERVED.findall(self.log)]


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def make_certificate(folder: Path, name: str = "registry") -> Path:
    """A self-signed certificate for 127.0.0.1, `NAME.crt`, with its key in `NAME.key`."""
    certificate = folder / f"{name}.crt"
    subprocess.run(
        (
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
            ),
            *("-keyout", str(folder / f"{name}.key"), "-out", str(certificate), "-days", "2"),
            *("-subj", f"/CN={name} of tests", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
        ),
        check=True,
        stderr=subprocess.DEVNULL,
    )
    return certificate


def write_auth(path: Path, host: str, user: str = USER, password: str = PASSWORD) -> Path:
    """An auth.json with one login."""
    login = base64.b64encode(f"{user}:{password}".encode()).decode()
    path.write_text(json.dumps({"auths": {host: {"auth": login}}}))
    return path


@contextlib.contextmanager
def oci_registry(folder: Path, *, log: bool = True) -> Iterator[OciRegistry]:
    """Run one whose files are in `folder`; skips where the program is not installed."""
    program = shutil.which("docker-registry", path="/usr/bin:/usr/local/bin:/usr/sbin")
    if program is None:
        pytest.skip("docker-registry is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    certificate = make_certificate(folder)
    (folder / "htpasswd").write_text(_HTPASSWD + "\n")
    port = free_port()
    configuration = {
        "version": "0.1",
        "log": {"level": "info" if log else "error", "accesslog": {"disabled": not log}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "files")}, "delete": {"enabled": True}},
        "http": {
            "addr": f"127.0.0.1:{port}",
            "secret": "none",
            "tls": {"certificate": str(certificate), "key": str(folder / "registry.key")},
        },
        "auth": {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}},
    }
    (folder / "config.yml").write_text(json.dumps(configuration))  # JSON is YAML
    with (folder / "log").open("w") as output:
        process = subprocess.Popen(
            (program, "serve", str(folder / "config.yml")), stdout=output, stderr=output, env={}
        )
    try:
        _await_port(port, process)
        host = f"127.0.0.1:{port}"
        yield OciRegistry(host, certificate, write_auth(folder / "auth.json", host), folder)
    finally:
        process.kill()
        process.wait()


def _await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        assert process.poll() is None, "the registry has ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise AssertionError("the registry does not answer")

"""A small registry on loopback whose answers can be anything: a hook may say them."""

from __future__ import annotations

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from attrs import define, field

from nvdriver_build.commands import SystemCommands
from nvdriver_build.registry import Limits, Registry, open_registry
from nvdriver_build.registry.artifacts import (
    MANIFEST_TYPE,
    MODULE_TYPE,
    OCI_MANIFEST,
    SIGNATURE_TYPE,
    Artifact,
    Blob,
    blob_of,
    digest_of,
)
from nvdriver_build.registry.compression import compress
from nvdriver_build.sets import ModuleSet

QUICK = Limits(connect=1, silence=1, answer=2, rate=10**6, attempts=2, pause=0.01)
"""So that a test of what takes too long takes three seconds."""


@define(eq=False)
class Hostile:
    """What is served. A hook may answer a request itself: it then returns True."""

    port: int = 0
    documents: Dict[str, bytes] = field(factory=dict)
    blobs: Dict[str, bytes] = field(factory=dict)
    hook: Optional[Callable[[Handler], bool]] = None
    seen: List[Tuple[str, str, Dict[str, str]]] = field(factory=list)
    """Method, path and headers of each request."""

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def open(self, **options: Any) -> Registry:
        """Our client of it."""
        given: Dict[str, Any] = {"limits": QUICK, **options}
        return open_registry(f"http://{self.host}/r", SystemCommands(), **given)

    def hold(self, made: ModuleSet, work: Path) -> Artifact:
        """Have a set as a push would bring it."""
        work.mkdir()
        modules = {}
        for path in made.paths:
            compress(path, work / path.name, SystemCommands())
            data = (work / path.name).read_bytes()
            self.blobs[digest_of(data)] = data
            modules[path.name] = Blob(MODULE_TYPE, digest_of(data), len(data), path.name)
        config, signature = made.manifest_bytes, made.signature
        assert signature is not None
        self.blobs.update({digest_of(data): data for data in (config, signature)})
        artifact = Artifact(blob_of(config, MANIFEST_TYPE), blob_of(signature, SIGNATURE_TYPE), modules)
        self.documents[f"set-{made.key}"] = artifact.document()
        return artifact


class Handler(BaseHTTPRequestHandler):
    """Answers as a registry does, unless the hook does."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def _answer(self) -> None:
        hostile = self.server.hostile
        hostile.seen.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        with contextlib.suppress(OSError):
            if hostile.hook is not None and hostile.hook(self):
                return
            kind, _, name = self.path.partition("/v2/r/")[2].partition("/")
            data = (hostile.documents if kind == "manifests" else hostile.blobs).get(name)
            if data is None:
                self.reply(404, b"{}")
            else:
                self.reply(200, data, OCI_MANIFEST if kind == "manifests" else "application/octet-stream")

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def reply(self, status: int, data: bytes, kind: str = "application/json", **headers: str) -> None:
        """A whole answer."""
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *words: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hostile: Hostile

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@contextlib.contextmanager
def hostile_registry() -> Iterator[Hostile]:
    """Run one."""
    with _Server(("127.0.0.1", 0), Handler) as server:
        server.hostile = Hostile(server.server_port)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server.hostile
        server.shutdown()

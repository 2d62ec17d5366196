"""A stand-in for the API server that keeps Leases (coordination.k8s.io/v1), with versions and conflicts."""

from __future__ import annotations

import contextlib
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Tuple

from attrs import define, field

from nvdriver_build.registry.turns import Cluster

TOKEN = "token-of-tests"
_PREFIX = "/apis/coordination.k8s.io/v1/namespaces/gpu/leases"


@define(eq=False)
class Leases:
    """The Leases of one namespace, as the API server treats them. `refuse` is a status for every request."""

    refuse: Optional[int] = None
    there: Dict[str, Dict[str, Any]] = field(factory=dict)
    calls: Counter[str] = field(factory=Counter)
    _version: int = 0
    _lock: Any = field(factory=threading.Lock)

    def answer(self, method: str, path: str, token: str, body: bytes) -> Tuple[int, Dict[str, Any]]:
        """Status and document for a request."""
        with self._lock:
            self.calls[method] += 1
            if self.refuse is not None:
                return self.refuse, _status(self.refuse)
            if token != f"Bearer {TOKEN}":
                return 401, _status(401)
            if not path.startswith(_PREFIX):
                return 404, _status(404)
            return self._lease(method, path[len(_PREFIX) :].strip("/"), body)

    def _lease(self, method: str, name: str, body: bytes) -> Tuple[int, Dict[str, Any]]:
        document = json.loads(body) if body else {}
        if method == "POST":
            name = document["metadata"]["name"]
            return (409, _status(409)) if name in self.there else (201, self._kept(name, document))
        if name not in self.there:
            return 404, _status(404)
        if method == "PUT":
            last = self.there[name]["metadata"]["resourceVersion"]
            if document["metadata"].get("resourceVersion") != last:
                return 409, _status(409)
            return 200, self._kept(name, document)
        return 200, self.there[name]

    def _kept(self, name: str, document: Dict[str, Any]) -> Dict[str, Any]:
        self._version += 1
        document["metadata"]["resourceVersion"] = str(self._version)
        self.there[name] = document
        return document


def _status(code: int) -> Dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024
    leases: Leases


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = self.headers.get("Authorization", "")
        code, document = self.server.leases.answer(self.command, self.path, token, body)
        data = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = _answer

    def log_message(self, *words: Any) -> None:
        pass


@contextlib.contextmanager
def lease_server(folder: Path, leases: Optional[Leases] = None) -> Iterator[Tuple[Cluster, Leases]]:
    """Serve Leases on loopback; how a pod with a service account sees it."""
    kept = leases or Leases()
    (folder / "token").write_text(TOKEN)
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.leases = kept
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield Cluster(f"http://127.0.0.1:{server.server_port}", "gpu", folder / "token", None), kept
        server.shutdown()

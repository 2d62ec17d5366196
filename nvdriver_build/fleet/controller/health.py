"""/healthz, /readyz and /metrics over HTTP, for Kubernetes and Prometheus."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Callable, Optional

from nvdriver_build.errors import ClusterError

Answer = Callable[[], tuple[int, bytes]]


class HealthServer:
    """Answers each path with what its function says, until it is closed."""

    def __init__(self, address: str, port: int, answers: dict[str, Answer]) -> None:
        try:
            self._http = ThreadingHTTPServer((address, port), _handler(answers))
        except (OSError, OverflowError) as error:
            hint = "give another one with --listen"
            raise ClusterError(f"cannot listen at {address}:{port}: {error}", hint=hint) from error
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._http.server_address[1])

    def close(self) -> None:
        """End it."""
        self._http.shutdown()
        self._http.server_close()


def _handler(answers: dict[str, Answer]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            found: Optional[Answer] = answers.get(self.path.partition("?")[0])
            code, body = found() if found else (404, b"not here\n")
            self.send_response(code)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: probes come every few seconds."""

    return Handler

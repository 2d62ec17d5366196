"""/healthz, /readyz and /metrics over HTTP, for Kubernetes and Prometheus."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Callable, Optional

from nvdriver_build.errors import ClusterError

Answer = Callable[[], tuple[int, bytes]]


class HealthServer:
    """Answers each path with what its function says, until it is closed. Without an address it does so at
    all of this machine, of IPv4 and IPv6: a kubelet asks by the one that the pod has first.
    """

    def __init__(self, address: str, port: int, answers: dict[str, Answer]) -> None:
        try:
            self._http = _Server(address, port, _handler(answers))
        except (OSError, OverflowError) as error:
            hint = "give another one with --listen"
            raise ClusterError(f"cannot listen at {address}:{port}: {error}", hint=hint) from error
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


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = _family(address)
        super().__init__((address, port), handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:  # `::` takes IPv4 as well, whatever net.ipv6.bindv6only is
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def _family(address: str) -> socket.AddressFamily:
    if address:
        return socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0][0]
    return socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET


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

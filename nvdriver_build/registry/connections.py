"""Connections that can be cut from outside while their thread waits for the other side.

Apart from `transport`, since urllib3 is loaded only where a registry is really asked.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from typing import Any, Callable, Optional

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

AGAIN = (
    urllib3.exceptions.ProtocolError,
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.ProxyError,
)
"""What another try may mend."""
FAILURES = (urllib3.exceptions.HTTPError, OSError, ValueError)
"""What a request can raise; `http.client` has errors that are ValueErrors."""


class Worker(threading.Thread):
    """A request in a thread of its own; `cut` ends it, whatever it waits for."""

    def __init__(self, act: Callable[[Worker], Any]) -> None:
        super().__init__(daemon=True)
        self.done = threading.Event()
        self.is_cut = False
        self.result: Any = None
        self.error: Optional[BaseException] = None
        self.connection: Optional[HTTPConnection] = None
        self._act = act

    def run(self) -> None:
        """Act; what is raised is for whoever waits."""
        try:
            self.result = self._act(self)
        except BaseException as error:
            self.error = error
        finally:
            self.done.set()

    def cut(self) -> None:
        """Shut the connection, so that reading and writing end at once."""
        self.is_cut = True
        sock = getattr(self.connection, "sock", None)
        with contextlib.suppress(OSError, ValueError):
            if sock is not None:
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not TLS's own, which is not for two threads


class _Seen(HTTPConnection):
    """Tells the thread that it works for."""

    def connect(self) -> None:
        self._tell()
        super().connect()

    def putrequest(self, *args: Any, **options: Any) -> None:
        self._tell()
        super().putrequest(*args, **options)

    def _tell(self) -> None:
        worker = threading.current_thread()
        if isinstance(worker, Worker):
            worker.connection = self


class _SeenTls(_Seen, HTTPSConnection):
    pass


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Seen


class _PoolTls(urllib3.HTTPSConnectionPool):
    ConnectionCls = _SeenTls


def manager(proxy: Optional[str], context: ssl.SSLContext) -> urllib3.PoolManager:
    """Connections that are kept for the next request, straight or through a proxy."""
    options: Any = {"ssl_context": context, "retries": False, "maxsize": 2}
    if proxy is None:
        made = urllib3.PoolManager(**options)
    else:
        login = _login(proxy)
        headers = urllib3.make_headers(proxy_basic_auth=login) if login else None
        made = urllib3.ProxyManager(proxy, proxy_headers=headers, proxy_ssl_context=context, **options)
    made.pool_classes_by_scheme = {"http": _Pool, "https": _PoolTls}
    return made


def _login(proxy: str) -> Optional[str]:
    """Name and password in a proxy's address; ValueError, without them, where it is none."""
    try:
        return urllib3.util.parse_url(proxy).auth
    except urllib3.exceptions.LocationParseError:
        raise ValueError("HTTPS_PROXY is no address of a proxy") from None

"""Where the controller's health server listens."""

from __future__ import annotations

import contextlib
import socket
import urllib.request
from typing import Iterator

import pytest

pytest.importorskip("lightkube", reason="the extra 'fleet' is for Python 3.11 and later")

from fleet_rig import needs_ipv6
from pytest_mock import MockerFixture

from nvdriver_build.cli.cluster import watch_cluster
from nvdriver_build.errors import ClusterError, UsageError
from nvdriver_build.fleet.controller.health import HealthServer


@contextlib.contextmanager
def served(address: str) -> Iterator[int]:
    server = HealthServer(address, 0, {"/healthz": lambda: (200, b"ok\n")})
    try:
        yield server.port
    finally:
        server.close()


def answer(host: str, port: int) -> bytes:
    with urllib.request.urlopen(f"http://{host}:{port}/healthz", timeout=10) as found:
        return bytes(found.read())


@needs_ipv6
@pytest.mark.parametrize("address", ["", "::"])
def test_probes_come_by_ipv4_and_by_ipv6(address: str) -> None:
    """A kubelet asks the pod by the first of its addresses, which is of either family."""
    with served(address) as port:
        assert answer("127.0.0.1", port) == answer("[::1]", port) == b"ok\n"


@needs_ipv6
def test_an_address_is_of_its_own_family() -> None:
    """At ::1 nobody is answered by IPv4, at 127.0.0.1 nobody by IPv6."""
    for address, host, other in (("::1", "[::1]", "127.0.0.1"), ("127.0.0.1", "127.0.0.1", "[::1]")):
        with served(address) as port:
            assert answer(host, port) == b"ok\n"
            with pytest.raises(OSError):
                answer(other, port)


def test_a_machine_without_ipv6_is_asked_by_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel may have no IPv6 at all."""
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with served("") as port:
        assert answer("127.0.0.1", port) == b"ok\n"


@pytest.mark.parametrize("listen", ["", "foo", ":http", "[::1]"])
def test_an_address_without_a_port_is_wrong_usage(listen: str, mocker: MockerFixture) -> None:
    """It is told with what was given, before anybody is asked."""
    asked = mocker.patch("nvdriver_build.cli.cluster.cluster")
    with pytest.raises(UsageError, match="names no port"):
        watch_cluster(None, None, mocker.Mock(), {}, listen)
    asked.assert_not_called()


@pytest.mark.parametrize(("address", "port"), [("192.0.2.1", 0), ("no.such.host.invalid", 0), ("", -1)])
def test_what_is_no_address_of_ours_is_told(address: str, port: int) -> None:
    """An address of another machine, a name of none, what is no port: the hint names the option."""
    with pytest.raises(ClusterError, match="cannot listen at") as caught:
        HealthServer(address, port, {})
    assert "--listen" in str(caught.value.hint)

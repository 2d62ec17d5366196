"""A cluster behind an API server on loopback: a `World` that lives by the clock, and who watches it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import pytest
from api_server import ApiServer
from upgrade_sim import RELEASES
from upgrade_world import NODES, SPACE, Machine, World

from nvdriver_build.errors import Stopped
from nvdriver_build.fleet.controller.client import HttpApi, cluster_config
from nvdriver_build.fleet.controller.metrics import Metrics
from nvdriver_build.fleet.controller.watching import Pace, Watcher
from nvdriver_build.fleet.manifests import Driver
from nvdriver_build.fleet.names import LABEL
from nvdriver_build.fleet.plan import Sets

TICK = 0.05
IMAGE = "quay.io/example/driver@sha256:0"


def _ipv6_loopback() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not _ipv6_loopback(), reason="this machine has no IPv6 loopback")
PACE = Pace(settled=0.03, most=0.2, resync=60.0, absent=60.0, retry=0.05, again=0.1)


class Rig:
    """A server, its world, and the controllers that were started; a `world` may be given, with its nodes."""

    def __init__(
        self, server: ApiServer, folder: Path, nodes: int = 3, world: Optional[World] = None
    ) -> None:
        self.server, self.folder = server, folder
        self.world = world or World(RELEASES, store=server.store)
        self.errors: List[BaseException] = []
        self._end = threading.Event()
        with server.lock:
            for number in range(0 if world else nodes):
                self.world.add(Machine(f"node-{number}", "x86_64", RELEASES[0], "stale"))
            if world is None:
                self.world.offer(RELEASES[0])
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def _live(self) -> None:
        while not self._end.wait(TICK):
            try:
                with self.server.lock:
                    self.world.tick()
            except BaseException as error:
                self.errors.append(error)
                return

    def stop(self) -> None:
        """Time stands still from now on."""
        self._end.set()
        self._thread.join()

    def close(self) -> None:
        self.stop()
        assert not self.errors, self.errors

    @property
    def kubeconfig(self) -> Path:
        return self.server.kubeconfig(self.folder / "kubeconfig", SPACE)

    def api(self, metrics: Optional[Metrics] = None) -> HttpApi:
        return HttpApi(cluster_config(self.kubeconfig), metrics.request if metrics else None)

    def do(self, what: Callable[[World], Any]) -> Any:
        """Something happens in the world."""
        with self.server.lock:
            return what(self.world)

    def labels(self) -> Dict[str, Optional[str]]:
        with self.server.lock:
            return {
                each["metadata"]["name"]: each["metadata"]["labels"].get(LABEL)
                for each in self.server.store.list(NODES)
            }

    def ready(self, version: str) -> bool:
        """Whether all nodes run this version, and their drivers are ready."""
        with self.server.lock:
            return all(
                each.release.version == version and self.world.driver_ready(name)
                for name, each in self.world.machines.items()
            )

    def versions(self) -> List[str]:
        with self.server.lock:
            return sorted(each["metadata"]["annotations"][LABEL] for each in self.world.daemonsets())


class Running:
    """A `Watcher` in a thread."""

    def __init__(
        self, rig: Rig, identity: str = "one", pace: Pace = PACE, sets: Optional[Sets] = None, **driver: Any
    ) -> None:
        self.metrics = Metrics()
        self.api = rig.api(self.metrics)
        self._stop = threading.Event()
        given = Driver(image=IMAGE, namespace=SPACE, **driver)
        self.watcher = Watcher(self.api, given, identity, self._check, self.metrics, pace=pace, sets=sets)
        self.error: Optional[BaseException] = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _check(self) -> None:
        if self._stop.is_set():
            raise Stopped(15)

    def _run(self) -> None:
        try:
            self.watcher.run()
        except Stopped:
            pass
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        self._stop.set()
        self._thread.join(10)
        self.api.close()
        assert not self._thread.is_alive()
        assert self.error is None, repr(self.error)

    def count(self, verb: str, kind: str) -> float:
        """Requests of this verb for this kind, whatever came of them."""
        (found,) = (
            each for each in self.metrics.registry.collect() if each.name == "nvdriver_fleet_api_requests"
        )
        return sum(
            each.value
            for each in found.samples
            if each.name.endswith("_total") and (each.labels["verb"], each.labels["kind"]) == (verb, kind)
        )


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Rig]:
    """A cluster behind a server of its own."""
    with ApiServer() as server:
        made = Rig(server, folder)
        yield made
        made.close()


@contextlib.contextmanager
def running(rig: Rig, identity: str = "one", **more: Any) -> Iterator[Running]:
    """A controller that watches, and ends as by a signal."""
    made = Running(rig, identity, **more)
    try:
        yield made
    finally:
        made.end()


def wait_for(what: Callable[[], object], seconds: float = 30.0) -> None:
    """Until it is true."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.02)


def listening(pid: int) -> str:
    """Where a process listens, by its sockets."""
    inodes = {str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir() if each.is_symlink()}
    for table, host in (("tcp", "127.0.0.1"), ("tcp6", "[::1]")):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in inodes:
                return f"{host}:{int(words[1].rpartition(':')[2], 16)}"
    raise AssertionError("it does not listen")

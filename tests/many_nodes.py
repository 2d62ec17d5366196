"""Many simulated nodes that want the same set at once: who compiles, what moves, how long it takes."""

from __future__ import annotations

import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Optional

from attrs import define, field
from fake_toolchain import FakeToolchain
from keys import make_identity
from lease_server import Leases, lease_server
from oci_registry import OciRegistry, oci_registry

WORKER = Path(__file__).with_name("node_worker.py")


@define
class Outcome:
    """What a run came to. `sent` is what the registry sent, in bytes; seconds are those of a node."""

    nodes: int
    turns: str
    compiles: int
    origins: Dict[str, int]
    seconds: List[float]
    requests: Dict[str, int]
    sent: int
    lease_calls: int
    wall: float
    programs: str = ""
    errors: List[str] = field(factory=list)

    def row(self) -> str:
        """A row of the table."""
        requests = ", ".join(f"{count} {method}" for method, count in sorted(self.requests.items()))
        lease = f"; Lease {self.lease_calls}" if self.lease_calls else ""
        return (
            f"| {self.nodes} | {self.turns} | {self.compiles} "
            f"| {sum(self.requests.values())} ({requests}){lease} "
            f"| {self.sent / 2**20:.1f} | {statistics.median(self.seconds):.1f} | {max(self.seconds):.1f} |"
        )


HEAD = """\
| nodes | turns by | compiled | requests | MiB sent by the registry | median s | worst s |
|---|---|---|---|---|---|---|"""


def run_nodes(
    root: Path,
    count: int,
    *,
    lease: bool,
    processes: int = 4,
    compile_seconds: float = 5.0,
    remember: bool = True,
    waits: Optional[Dict[str, float]] = None,
    module_size: int = 0,
) -> Outcome:
    """Let `count` nodes come up at once, in `processes`, against one registry with TLS and a login."""
    root.mkdir(parents=True, exist_ok=True)
    tools = FakeToolchain.make(root / "tools")
    make = (root / "tools/bin/make").read_text()
    tools.program("make", f"sleep {compile_seconds}\n" + make.partition("\n")[2])
    if module_size:
        path = root / "tools/modules/nvidia.ko"
        path.write_bytes(path.read_bytes() + random.Random(0).randbytes(module_size))
    identity = make_identity(root / "keys", "builder")
    memory = Path("/dev/shm")  # a thousand stores on one disk would measure its fsync
    stores = Path(tempfile.mkdtemp(prefix="nvdriver-build-nodes-", dir=memory if memory.is_dir() else root))
    leases = Leases()
    with oci_registry(root / "registry") as registry, lease_server(root, leases) as (cluster, _):
        given: Dict[str, Any] = {
            "root": str(stores),
            "tools": str(root / "tools"),
            "path": f"{tools.path}:/usr/bin",
            "key": str(identity.key),
            "certificate": str(identity.file),
            "registry": f"{registry.host}/nvidia/sets",
            "authority": str(registry.authority),
            "auth": str(registry.auth),
            "lease": {"url": cluster.url, "namespace": cluster.namespace, "token": str(cluster.token)}
            if lease
            else None,
            "marker": [float(__import__("os").environ.get("SPREAD", "5")), 2.0],
            "waits": waits or {"dead": 45, "beat": 5, "first": 1, "last": 8, "most": 300},
            "remember": remember,
            "start": time.time() + 3 + count / 400,
        }
        try:
            results, wall = _run(root, given, count, processes)
        finally:
            shutil.rmtree(stores)
        return _outcome(count, "Lease" if lease else "marker", tools, registry, leases, results, wall)


def _run(root: Path, given: Dict[str, Any], count: int, processes: int) -> Any:
    started, workers = time.monotonic(), []
    for number in range(processes):
        document = root / f"worker{number}.json"
        document.write_text(json.dumps({**given, "nodes": list(range(number, count, processes))}))
        workers.append(
            subprocess.Popen(
                (sys.executable, str(WORKER), str(document)), stdout=subprocess.PIPE, env=_environment()
            )
        )
    try:
        outputs = [worker.communicate(timeout=600)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return [result for output in outputs for result in json.loads(output)], time.monotonic() - started


def _environment() -> Dict[str, str]:
    here = Path(__file__).parent
    return {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{here.parent}:{here}"}


def _outcome(
    count: int,
    turns: str,
    tools: FakeToolchain,
    registry: OciRegistry,
    leases: Leases,
    results: List[Dict[str, Any]],
    wall: float,
) -> Outcome:
    served = registry.served
    origins = Counter(result["origin"] for result in results)
    return Outcome(
        nodes=count,
        turns=turns,
        compiles=tools.make_calls(),
        origins=dict(origins),
        seconds=[result["seconds"] for result in results],
        requests=dict(Counter(method for method, _ in served)),
        sent=sum(size for _, size in served),
        lease_calls=sum(leases.calls.values()),
        wall=wall,
        errors=[origin for origin in origins if origin not in ("built", "registry", "store")],
    )

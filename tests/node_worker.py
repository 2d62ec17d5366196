"""A process in which many simulated nodes want the same set at once: see `many_nodes`.

A node is a thread with a store, a registry client, a connection and a name of its own, which runs `obtain` as
`run` does. What nodes of one process share is what each would have made the same: the kernel's symbols, the
trust store of TLS. With `remember` the answers of zstd and openssl are kept by their input: so a thousand
nodes fit into some minutes of two cores.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

import structlog
from attrs import frozen
from keys import Identity

from nvdriver_build import registry as room
from nvdriver_build.commands import Commands, Finished, SystemCommands, Tick
from nvdriver_build.kernel import find_headers, target_from_headers
from nvdriver_build.obtain import Outside, Wish, modules_to_build, obtain, vouching
from nvdriver_build.registry import Limits, open_registry, transport
from nvdriver_build.registry.place import tls_context
from nvdriver_build.registry.turns import Cluster, Either, LeaseBoard, MarkerBoard, Turns, Waits, waiting
from nvdriver_build.signing import Trust
from nvdriver_build.source import open_source
from nvdriver_build.store import Store

_known: Dict[str, Any] = {}
_lock = threading.Lock()


@frozen
class Remembering:
    """Programs whose answer is remembered where they only turn one file into another, or check it."""

    real: SystemCommands

    @property
    def check(self) -> Tick:
        return self.real.check

    def find(self, program: str) -> Optional[str]:
        return self.real.find(program)

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        cwd: Optional[Path] = None,
        env: Optional[Mapping[str, str]] = None,
        log: Optional[Path] = None,
        tick: Optional[Tick] = None,
    ) -> Finished:
        def really() -> Finished:
            return self.real.run(argv, timeout=timeout, cwd=cwd, env=env, log=log, tick=tick)

        words = list(argv)
        if "-verify" not in words and "-d" not in words:
            return really()
        output = Path(words[words.index("-o") + 1]) if "-o" in words else None
        inputs = [Path(word) for word in words if word.startswith("/") and Path(word) != output]
        shown = [word for word in words if not word.startswith("/")]
        name = repr(
            (shown, [hashlib.sha256(path.read_bytes()).hexdigest() for path in inputs if path.is_file()])
        )
        with _lock:
            if name not in _known:
                done = really()
                _known[name] = done, output.read_bytes() if output and output.exists() else None
            done, made = _known[name]
            assert isinstance(done, Finished)
        if output is not None and made is not None:
            output.write_bytes(made)
        return done


@frozen
class Rig:
    """What all nodes of this process share."""

    given: Dict[str, Any]
    identity: Identity
    wish: Wish
    trust: Trust

    def node(self, number: int) -> Dict[str, Any]:
        """One node that comes up; how long it took, and where its set came from."""
        root = Path(self.given["root"]) / f"node{number}"
        real = SystemCommands(self.given["path"])
        commands: Commands = Remembering(real) if self.given["remember"] else real
        limits = Limits(connect=60, silence=120, answer=240, attempts=3, pause=0.5)
        client = open_registry(
            self.given["registry"],
            commands,
            authority=Path(self.given["authority"]),
            auth=Path(self.given["auth"]),
            limits=limits,
        )
        marker = MarkerBoard(client.content, *self.given["marker"])
        lease = self.given["lease"]
        cluster = Cluster(lease["url"], lease["namespace"], Path(lease["token"]), None) if lease else None
        board = Either(LeaseBoard(cluster, limits=limits), marker) if cluster else marker
        turns = Turns(board, f"node{number}", Waits(**self.given["waits"]))
        store = Store(root, vouching(self.trust, commands))
        outside = Outside(client, self.trust, commands, turns)
        time.sleep(max(0.0, self.given["start"] - time.time()))
        started = time.monotonic()
        found = obtain(self.wish, store, commands, outside=outside)
        seconds = time.monotonic() - started
        assert found.set.read(digest=True)[0].sha256 == found.set.manifest.files[0].sha256
        shutil.rmtree(root)
        return {"origin": found.origin, "seconds": seconds}


def make_rig(given: Dict[str, Any]) -> Rig:
    tools = Path(given["tools"])
    commands = SystemCommands(given["path"])
    identity = Identity(Path(given["key"]), Path(given["certificate"]))
    source = open_source(tools / "source", "auto", tools, commands)
    headers = find_headers(tools / "headers")
    wish = Wish(
        source=source,
        target=target_from_headers(headers),
        headers=headers,
        proof="release: a test",
        modules=modules_to_build(source, ["nvidia"]),
        jobs=1,
        reuse=True,
        certificate=identity.certificate,
        signer=identity.signer,
    )
    return Rig(given, identity, wish, Trust((identity.certificate,)))


def main() -> None:
    given = json.loads(Path(sys.argv[1]).read_text())
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    setattr(room, "tls_context", functools.lru_cache(tls_context))  # noqa: B010 - for all nodes alike
    transport._GLANCE = waiting._GLANCE = 60.0  # no signal will come, and a thousand glances cost much
    rig = make_rig(given)
    results: List[Dict[str, Any]] = []

    def live(number: int) -> None:
        try:
            results.append(rig.node(number))
        except BaseException as error:
            results.append({"origin": f"{type(error).__name__}: {error}", "seconds": 0.0})

    threads = [threading.Thread(target=live, args=(number,)) for number in given["nodes"]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main()

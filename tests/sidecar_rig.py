"""A pod of two containers as two processes and a folder, with a make that waits, fails or works as told.

    with Pod.make(tmp_path) as pod:
        toolkit, driver = pod.toolkit(), pod.driver()
        assert driver.outcome().key

`pod.hold()` lets make wait in the middle of its work, `pod.release()` lets it go on. Every make that runs at
the same time as another one is told by `pod.twice`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

from attrs import define, field
from fake_toolchain import FakeToolchain
from kernel_trees import RELEASE, toolkit
from processes import living
from sidecar_processes import PATIENCE, SOON, End
from trees import write_tree

from nvdriver_build.commands import SystemCommands
from nvdriver_build.errors import Stopped
from nvdriver_build.kernel import Headers, find_headers, target_from_headers
from nvdriver_build.obtain import Wish, build_ordered, modules_to_build
from nvdriver_build.source import open_source
from nvdriver_build.store import Store
from nvdriver_build.toolkit import Order, Server, Shared, Sidecar
from nvdriver_build.toolkit.documents import Request, Result, read, write

ODD = "a'b\"c\n$(touch executed)`touch executed`;touch executed\\ \u20ac"
"""What a shell would execute, and no reader of lines would leave whole."""
_MAKE = """\
exec 9>>{root}/make-lock
flock -n 9 || echo "$@" >> {root}/twice
echo "$@" >> {root}/toolchain/make-calls
echo $$ > {root}/in-make
while [ $# -gt 0 ]; do
    case "$1" in -C) tree=$2; shift ;; esac
    shift
done
echo " CC [M]  nvidia/nv.o"
while [ -e {root}/hold ]; do sleep 0.02 9>&-; done
{ending}
for module in {root}/toolchain/modules/*.ko; do cp "$module" "$tree"/; done
"""


@define
class Pod:
    """Where everything is."""

    root: Path
    toolchain: FakeToolchain
    ends: List[End] = field(factory=list)

    @classmethod
    @contextlib.contextmanager
    def make(cls, root: Path) -> Iterator[Pod]:
        """Lay out a pod below `root`; in the end its processes are gone, and no make is left."""
        pod = cls(root, FakeToolchain.make(root / "toolchain"))
        pod.shared.root.mkdir()
        write_tree(root / "bundle", {"nvdriver-build.pyz": "bundle", "ocp_dtk_entrypoint": "#!/bin/sh\n"})
        pod.dtk(toolkit(RELEASE))
        pod.runs(RELEASE)
        pod.program()
        try:
            yield pod
        finally:
            pod.end()

    def end(self) -> None:
        """Kill both ends, and wait for all that they have started."""
        for end in self.ends:
            end.kill()
        self._until(lambda: not living(f"{self.root}/"))

    @contextlib.contextmanager
    def again(self) -> Iterator[Pod]:
        """Another pod; this one is over, whatever its make is doing."""
        for process in living(f"{self.root}/toolchain"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        self.end()
        with Pod.make(self.root / "again") as pod:
            yield pod

    @property
    def shared(self) -> Shared:
        """The folder that both see."""
        return Shared(self.root / "shared")

    @property
    def store(self) -> Store:
        """The node's own."""
        return Store(self.root / "store")

    def dtk(self, files: Any) -> None:
        """Make the toolkit's image anew."""
        shutil.rmtree(self.root / "dtk", ignore_errors=True)
        write_tree(self.root / "dtk", files)

    def runs(self, release: str) -> None:
        """Let the node run this kernel."""
        (self.root / "kernel").write_text(release)

    def program(self, ending: str = "") -> None:
        """Another make: `ending` is what it does once it may go on."""
        self.toolchain.program("make", _MAKE.format(root=self.root, ending=ending))

    def hold(self) -> None:
        """Let make wait."""
        (self.root / "hold").touch()

    def release(self) -> None:
        """Let make go on."""
        (self.root / "hold").unlink()

    @property
    def calls(self) -> int:
        """How often make was started."""
        return self.toolchain.make_calls()

    @property
    def twice(self) -> bool:
        """Whether two makes ever ran at once."""
        return (self.root / "twice").exists()

    def in_make(self) -> None:
        """Wait until make runs."""
        self._until((self.root / "in-make").exists)

    def introduced(self) -> None:
        """Wait until the toolkit's end has said who it is."""
        self._until(self.shared.introduction.exists)

    def _until(self, true: Callable[[], bool]) -> None:
        until = time.monotonic() + SOON
        while not true():
            assert time.monotonic() < until, ([end.log for end in self.ends], living(f"{self.root}/"))
            time.sleep(0.01)

    def makes(self) -> List[int]:
        """The processes of make, and what they have started, that are alive."""
        return [process.pid for process in living(f"{self.root}/toolchain/bin")]

    def toolkit(self) -> End:
        """Start the toolkit's end."""
        return self._start("toolkit")

    def driver(self, arrival: float = PATIENCE, patience: float = PATIENCE) -> End:
        """Start the driver's end."""
        return self._start("driver", arrival, patience)

    def _start(self, which: str, *words: object) -> End:
        name = f"{which}-{len(self.ends)}"
        argv = [sys.executable, str(Path(__file__).with_name("sidecar_ends.py")), which, str(self.root)]
        with (self.root / f"{name}.log").open("wb") as log, (self.root / f"{name}.out").open("wb") as out:
            process = subprocess.Popen([*argv, *map(str, words)], stdout=out, stderr=log, env=_environment())
        self.ends.append(End(process, self.root, name))
        return self.ends[-1]

    def wish(self) -> Wish:
        """What the node wants."""
        source = open_source(self.toolchain.source, "open", self.root, SystemCommands())
        target = target_from_headers(find_headers(self.root / "dtk"))
        return Wish(source, target, None, "release: a test", modules_to_build(source), jobs=1)

    def order(self, **differ: Any) -> Order:
        """What the driver's end orders then."""
        wish = self.wish()
        return Order(**{"recipe": wish.recipe(), "proof": wish.proof, "jobs": 1, **differ})

    def offer(self) -> None:
        """Put the source where the toolkit's end looks for it."""
        shutil.copytree(self.toolchain.source, self.shared.source(self.order().recipe.source_digest))

    def ask(self, what: str, release: str = RELEASE, order: Optional[Order] = None) -> Request:
        """Write a request as the driver's end does."""
        request = Request(secrets.token_hex(8), "another driver", what, release, order)
        write(self.shared.request, request)
        return request

    def answer(self, attempt: str, within: float = SOON) -> Result:
        """Wait for the answer to an attempt."""
        until = time.monotonic() + within
        while True:
            result = read(self.shared.result, Result)
            if result is not None and result.attempt == attempt:
                return result
            assert time.monotonic() < until, f"no answer to {attempt}, but {result}"
            time.sleep(0.01)

    def sidecar(self, arrival: float = PATIENCE, patience: float = PATIENCE) -> Sidecar:
        """The driver's end in this process."""
        return Sidecar(self.shared, self.root / "bundle", lambda: None, arrival, patience)

    def headers(self, release: str, arrival: float = PATIENCE) -> Headers:
        """What the driver's end is told of a kernel; the files of it are gone again."""
        with self.sidecar(arrival).headers(release) as headers:
            return headers

    @contextlib.contextmanager
    def serving(self) -> Iterator[Server]:
        """The toolkit's end in a thread of this process."""
        end = threading.Event()

        def check() -> None:
            if end.is_set():
                raise Stopped(signal.SIGTERM)

        commands = SystemCommands(self.toolchain.path, check)
        build = lambda order, *rest: build_ordered(order, self.shared, *rest)  # noqa: E731
        server = Server(self.shared, self.root / "dtk", commands, build)
        thread = threading.Thread(target=_until_stopped, args=(server,))
        thread.start()
        try:
            yield server
        finally:
            end.set()
            thread.join(SOON)
        assert not thread.is_alive()


def _until_stopped(server: Server) -> None:
    with contextlib.suppress(Stopped):
        server.serve()


def _environment() -> Dict[str, str]:
    tests = Path(__file__).parent
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{tests.parent}:{tests}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }

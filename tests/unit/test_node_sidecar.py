"""A node whose modules are built in the toolkit beside its driver: whose facts count, what is asked."""

from __future__ import annotations

import contextlib
import gzip
import shutil
import threading
from pathlib import Path
from typing import Any, Iterator, List

import pytest
from fake_host import FakeHost
from fake_toolchain import SYSTEM_PATH, FakeToolchain, module_bytes
from fake_userland import FakeUserland
from kernel_trees import CONFIG, RELEASE, SYMBOLS, config_text, symvers_text, toolkit
from trees import write_tree

from nvdriver_build.commands import SystemCommands
from nvdriver_build.config import read_config
from nvdriver_build.errors import HeadersError, HeadersMismatch, Stopped, ToolkitError
from nvdriver_build.loader.kernel_log import KernelLog
from nvdriver_build.node.doctor import examine
from nvdriver_build.node.getting import Ways
from nvdriver_build.node.life import Node
from nvdriver_build.node.peermem import MofedPlace
from nvdriver_build.obtain import build_ordered
from nvdriver_build.readiness import Readiness, Status
from nvdriver_build.toolkit import Order, Server, Shared, Sidecar
from nvdriver_build.toolkit.documents import Request, read

NAMES = ("nvidia", "nvidia_uvm", "nvidia_modeset", "nvidia_drm")


class Pod:
    """Both containers: `toolkit()` serves in a thread while its block lasts, `run()` is the driver's life."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.toolchain = FakeToolchain.make(write_tree(root / "toolchain", {}))
        self.node = FakeHost(write_tree(root / "node", {}))
        kernel = {"osrelease": f"{RELEASE}\n", "version": "#1 SMP PREEMPT_DYNAMIC a test\n"}
        write_tree(root / "node/proc/sys/kernel", kernel)
        self.node.pci("0000:01:00.0")
        for name in NAMES:
            self.node.module(name, planned=True)
        self.image = write_tree(root / "image", toolkit(RELEASE))
        write_tree(root / "bundle", {"nvdriver-build.pyz": "the bundle", "ocp_dtk_entrypoint": "#!/bin/sh\n"})
        self.shared = Shared(write_tree(root / "shared", {}))
        self.readiness = Readiness(root / "run")
        self.seen: List[Status] = []

    @property
    def tree(self) -> Path:
        return self.root / "node/lib/modules" / RELEASE

    def describe_node(self, symbols: dict[str, int] = SYMBOLS) -> None:
        """Give the node what RHEL's kernel-core puts into its module folder."""
        write_tree(self.tree, {"config": config_text(CONFIG), "kernel/drm.ko": module_bytes("drm")})
        (self.tree / "symvers.gz").write_bytes(gzip.compress(symvers_text(symbols).encode()))

    @contextlib.contextmanager
    def toolkit(self) -> Iterator[None]:
        end = threading.Event()

        def check() -> None:
            if end.is_set():
                raise Stopped(15)

        server = Server(
            self.shared,
            self.image,
            SystemCommands(self.toolchain.path, check),
            lambda order, *rest: build_ordered(order, self.shared, *rest),
        )

        def serve() -> None:
            with contextlib.suppress(Stopped):
                server.serve()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()

    def settings(self, **more: str) -> dict[str, str]:
        return {
            "PATH": f"{self.root}/node/bin:{SYSTEM_PATH}",
            "NVDRIVER_STORE": str(self.root / "store"),
            "NVDRIVER_SOURCE": str(self.toolchain.source),
            "NVDRIVER_MODULE_TREE": str(self.tree),
            "NVDRIVER_PARAMETERS": str(self.root / "drivers"),
            "NVDRIVER_RUN_DIR": str(self.root / "run"),
            "NVDRIVER_TOOLKIT_DIR": str(self.shared.root),
            "NVDRIVER_BUNDLE": str(self.root / "bundle"),
            **more,
        }

    def run(self, **more: str) -> Status:
        """From the start until Ready, then a signal; the status at Ready."""
        config = read_config(self.settings(**more))

        def stop() -> None:
            status = self.readiness.read_status()
            if status is not None and status.ready:
                self.seen.append(status)
                raise Stopped(15)

        commands = SystemCommands(config.path)
        Node(
            config=config,
            host=self.node.host,
            machine="x86_64",
            commands=commands,
            leaving=commands,
            journal=KernelLog(self.root / "no-log").follow,
            stop=stop,
            progress=lambda *_: None,
            readiness=self.readiness,
            ways=Ways(
                config, commands, MofedPlace(self.node.host), Sidecar(self.shared, config.bundle, stop)
            ),
            userland=FakeUserland(),
            modules=self.root / "modules",
            pause=lambda _: None,
        ).run()
        return self.seen[-1]


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


def test_built_beside_and_proven_by_the_nodes_own_symvers(pod: Pod) -> None:
    """The node says what its kernel is, the toolkit builds, the store of the node has it, the log too."""
    pod.describe_node()
    with pod.toolkit():
        status = pod.run()
    assert (status.origin, status.fit) == ("built", "exact")
    assert status.proof is not None
    assert status.proof.startswith(f"symvers: {len(SYMBOLS)} exported symbols")
    assert (pod.root / "store/sets" / str(status.key) / "nvidia.ko").exists()
    assert (pod.root / "store/logs" / f"{status.key}.log").read_text()
    assert (pod.shared.root / "nvdriver-build.pyz").read_text() == "the bundle"
    assert (pod.shared.root / "ocp_dtk_entrypoint").stat().st_mode & 0o777 == 0o755
    assert pod.shared.prepared.exists()


def test_a_shared_folder_that_takes_nothing_ends_nobody_who_has_a_set(pod: Pod) -> None:
    """A set in the node's store is loaded although the toolkit cannot be told; only who needs it is told."""
    pod.describe_node()
    with pod.toolkit():
        assert pod.run().origin == "built"
    for path in (pod.shared.prepared, pod.shared.request, pod.shared.root / "nvdriver-build.pyz"):
        path.unlink()
        (path / "in the way").mkdir(parents=True)
    assert pod.run().origin == "store"
    shutil.rmtree(pod.root / "store")
    with pytest.raises(ToolkitError, match="Is a directory"):
        pod.run()


def test_a_log_that_is_no_file_is_not_kept(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link in the place of the log, to a device without end say, is not followed."""
    pod.describe_node()
    write_tree(pod.root, {"secret": "of the node"})
    build = Sidecar.build

    def linked(sidecar: Sidecar, order: Order, *rest: Any) -> Path:
        folder = build(sidecar, order, *rest)
        sidecar.log(order.recipe.key).unlink()
        sidecar.log(order.recipe.key).symlink_to(pod.root / "secret")
        return folder

    monkeypatch.setattr(Sidecar, "build", linked)
    with pod.toolkit():
        assert pod.run().origin == "built"
    assert list((pod.root / "store/logs").glob("*")) == []


def test_the_toolkit_describes_a_node_that_says_nothing(pod: Pod) -> None:
    """The second start asks nothing of the toolkit, which need not be there, but to stand by."""
    with pod.toolkit():
        status = pod.run()
    assert (status.origin, status.fit) == ("built", "exact")
    assert status.proof == "release: only the release string could be compared"


def test_a_set_in_the_store_needs_no_toolkit(pod: Pod) -> None:
    """The second start asks nothing of the toolkit, which need not be there, but for standing by."""
    pod.describe_node()
    with pod.toolkit():
        pod.run()
    calls = pod.toolchain.make_calls()
    assert pod.run().origin == "store"
    assert pod.toolchain.make_calls() == calls
    request = read(pod.shared.request, Request)
    assert request is not None
    assert request.what == "nothing"


def test_headers_of_another_build_are_refused_before_anything_is_built(pod: Pod) -> None:
    """Same release, another CRC: told with symbol and both values, and nothing is compiled."""
    pod.describe_node({**SYMBOLS, "printk": 0x99999999})
    with pod.toolkit(), pytest.raises(HeadersMismatch, match="printk has CRC 0x99999999 in the node's"):
        pod.run()
    assert pod.toolchain.make_calls() == 0


def test_toolkit_of_another_kernel_is_told(pod: Pod) -> None:
    """The kernel that is wanted, those that the toolkit has, and the RHEL release that it is of."""
    pod.image = write_tree(pod.root / "other", toolkit("5.14.0-362.8.1.el9_3.x86_64"))
    pod.describe_node()
    with pod.toolkit(), pytest.raises(HeadersMismatch) as caught:
        pod.run()
    for words in (RELEASE, "5.14.0-362.8.1.el9_3.x86_64", "of RHEL 9."):
        assert words in caught.value.message
    assert pod.toolchain.make_calls() == 0


def test_without_an_image_of_the_toolkit_only_the_store_serves(pod: Pod) -> None:
    """RHCOS_IMAGE_MISSING: exit 10 that names the version; with a set in the store all is well."""
    pod.describe_node()
    missing = {"RHCOS_IMAGE_MISSING": "true", "RHCOS_VERSION": "416.94.1-0"}
    with pytest.raises(HeadersError, match=r"no Driver Toolkit image for RHCOS 416\.94\.1-0"):
        pod.run(**missing)
    assert pod.shared.prepared.exists(), "the container beside may stop its waiting"
    with pod.toolkit():
        pod.run()
    assert pod.run(**missing).origin == "store"


def test_doctor_tells_who_the_toolkit_is(pod: Pod) -> None:
    """What it is once it has said so; why it can serve nobody; that there is none for this node."""

    def line(**more: str) -> tuple[object, str]:
        config = read_config(pod.settings(**more))
        checks = examine(config, pod.node.host, "x86_64", SystemCommands(config.path))
        (check,) = [check for check in checks if check.name == "toolkit"]
        return check.ok, check.detail

    pod.describe_node()
    assert line() == (None, f"has not said anything in {pod.shared.root} yet")
    with pod.toolkit():
        pod.run()
    ok, detail = line()
    assert ok is True
    assert f"kernels: {RELEASE} (standard); gcc" in detail
    assert line(RHCOS_IMAGE_MISSING="true")[0] is None
    error = '{"code": 10, "kind": "HeadersError", "message": "no Python", "hint": "x"}'
    pod.shared.introduction.write_text(f'{{"schema": 1, "instance": "sh-1", "error": {error}}}')
    assert line() == (False, "no Python")

"""Nodes with a store each, of which one has built, and a folder that all of them share."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Dict, Optional

from attrs import define, field
from fake_toolchain import FakeToolchain
from kernel_trees import CONFIG, RELEASE, SYMBOLS, build_tree, symvers_text
from keys import Identity
from trees import write_tree

from nvdriver_build.commands import SystemCommands
from nvdriver_build.kernel import KernelTarget, find_headers, target_from_headers
from nvdriver_build.obtain import Obtained, Outside, Wish, modules_to_build, obtain, vouching
from nvdriver_build.sets import SIGNATURE, ModuleSet
from nvdriver_build.signing import Signer, Trust, sign_manifest
from nvdriver_build.source import open_source
from nvdriver_build.store import Remote, SharedStore, Store

NEXT = "5.14.0-427.99.1.el9_4.x86_64"


@define
class Cluster:
    """Nodes with a store each, of which the first has built, and a folder that all of them share."""

    root: Path
    identity: Identity
    toolchain: FakeToolchain = field(init=False)
    shared: SharedStore = field(init=False)
    built: ModuleSet = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.toolchain = FakeToolchain.make(self.root / "toolchain")
        self.shared = SharedStore(self.root / "shared")
        self.built = self.node("builder", headers=True).set
        self.push(self.identity.signer)

    @property
    def commands(self) -> SystemCommands:
        return SystemCommands(f"{self.toolchain.path}:/usr/bin")

    def push(self, signer: Optional[Signer]) -> None:
        """Sign what was built, and put it into the shared folder."""
        shutil.rmtree(self.shared.root, ignore_errors=True)
        (self.built.folder / SIGNATURE).unlink(missing_ok=True)
        if signer is not None:
            made = sign_manifest(self.built.manifest_bytes, signer, self.commands)
            (self.built.folder / SIGNATURE).write_bytes(made)
            assert self.shared.push(self.built)
            assert not self.shared.push(self.built)
        else:
            shutil.copytree(self.built.folder, self.offered)

    @property
    def offered(self) -> Path:
        """The folder of the set that is offered."""
        return self.shared.root / "sets" / self.built.key

    def target(self, release: str = RELEASE, **symbols: int) -> KernelTarget:
        folder = self.toolchain.root / "kernels"
        shutil.rmtree(folder, ignore_errors=True)
        write_tree(folder, build_tree(release, CONFIG, symvers_text({**SYMBOLS, **symbols})))
        return target_from_headers(find_headers(folder))

    def store(self, name: str, trust: Trust) -> Store:
        return Store(self.root / name, vouching(trust, self.commands))

    def node(
        self,
        name: str,
        builders: Optional[Trust] = None,
        target: Optional[KernelTarget] = None,
        headers: bool = False,
        remote: Optional[Remote] = None,
        **differ: Any,
    ) -> Obtained:
        """What `run` would get on a node; HeadersError where it would have to be built.

        Others are asked at `remote`, the shared folder else.
        """
        trust = Trust((self.identity.certificate,)) if builders is None else builders
        outside = Outside(remote or self.shared, trust, self.commands)
        wish = self.wish(target, headers, **differ)
        return obtain(wish, self.store(name, trust), self.commands, outside=outside)

    def wish(self, target: Optional[KernelTarget] = None, headers: bool = False, **differ: Any) -> Wish:
        """What a node wants."""
        source = open_source(self.toolchain.source, "auto", self.toolchain.root, self.commands)
        found = find_headers(self.toolchain.headers)
        values: Dict[str, Any] = {
            "source": source,
            "target": target or target_from_headers(found),
            "headers": found if headers else None,
            "proof": "release: a test",
            "modules": modules_to_build(source),
            "reuse": True,
            **differ,
        }
        return Wish(**values)

    def signed_node(self, name: str) -> Obtained:
        """What a node gets that wants signed modules, and has the key for it."""
        return self.node(
            name, headers=True, certificate=self.identity.certificate, signer=self.identity.signer
        )

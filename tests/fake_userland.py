"""The parts of a driver beside its modules, as a list of what was done with them."""

from __future__ import annotations

from typing import List, Tuple

from attrs import define, field

from nvdriver_build.loader.parameters import Parameters
from nvdriver_build.loader.root import ModuleRoot


@define
class FakeUserland:
    """`up` while something is started; `calls` in their order; `lost` is what `down` says."""

    up: bool = False
    calls: List[str] = field(factory=list)
    lost: Tuple[str, ...] = ()

    def require_supported(self) -> None:
        self.calls.append("require_supported")

    def before_load(self, parameters: Parameters) -> None:
        self.calls.append("before_load")

    def after_load(self, root: ModuleRoot) -> None:
        self.calls.append("after_load")
        self.up = True

    def down(self) -> Tuple[str, ...]:
        return self.lost

    def undo(self) -> None:
        self.calls.append("undo")
        self.up = False

    def clean(self) -> None:
        self.calls.append("clean")

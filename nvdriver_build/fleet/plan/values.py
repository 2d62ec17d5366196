"""What a plan says: frozen values. Equal facts give equal plans, in whatever order the facts came."""

from __future__ import annotations

from typing import Mapping, Optional, Protocol, Sequence

from attrs import field, frozen

from nvdriver_build.fleet.reasons import Reason

# Rules by which a toolkit was found
OVERRIDE, TAG_RULE, LABEL_RULE = "override", "osimage-tag", "kernel-label"

# States of a group
SET = "set available"
"""Nodes take modules from the registry; nothing has to be built."""
CAN_BUILD = "can build"
"""There is a toolkit; no set is known yet, so that the first node builds it."""
PREBUILD_WANTED, PREBUILDING, PREBUILT = "prebuild wanted", "prebuilding", "prebuilt"
PREBUILD_FAILED = "prebuild failed"
BROKEN_TOOLKIT = "broken toolkit"
"""The toolkit is of another kernel or architecture, or has no image, and no set is known."""
NO_TOOLKIT = "no toolkit"
"""No tag, and no set is known: only what a node's own store has can serve."""
UNSUPPORTED = "unsupported"
"""The node's operating system or architecture is none that we serve, or it does not say which."""
BLOCKED = (PREBUILD_FAILED, BROKEN_TOOLKIT, NO_TOOLKIT, UNSUPPORTED)
"""States in which a person has to do something."""


class Sets(Protocol):
    """Whoever knows what the store or registry has for the driver that is meant."""

    @property
    def asks(self) -> bool:
        """Whether what is not known may be known later."""

    def has(self, kernel: str, arch: str, built: bool = False) -> Optional[bool]:
        """Whether a set is there for this kernel; None where that is not known. An answer from before a Job
        has `built` it counts for nothing.
        """

    def reasons(self) -> Sequence[Reason]:
        """Why something was not known that was asked for."""


class UnknownSets:
    """Nobody can be asked."""

    asks = False

    def has(self, kernel: str, arch: str, built: bool = False) -> Optional[bool]:
        """Not known."""
        return None

    def reasons(self) -> Sequence[Reason]:
        """Nobody has asked."""
        return ()


@frozen
class Options:
    """What a person decides about planning.

    `name` begins all names of ours. `driver` stands for all that changes the modules (`Driver.identity` of
    manifests): prebuilds of another one do not count. `prebuild` is whether there is somewhere to publish to.
    `overrides` give a toolkit image by RHCOS version. `nfd_label`: DaemonSets select by NFD's label, ours
    is not set.
    """

    name: str = "nvdriver-build"
    driver: str = ""
    prebuild: bool = True
    overrides: Mapping[str, str] = field(factory=dict)
    nfd_label: bool = False


@frozen
class Toolkit:
    """The Driver Toolkit image of a group, and the rule by which it was found; `tag` is None for an
    override.
    """

    tag: Optional[str]
    image: Optional[str]
    rule: str


@frozen
class Group:
    """GPU nodes of one RHCOS version, kernel, flavour and architecture; of a coming version with 0 nodes.

    `kernel` is None where a coming version's toolkit does not tell it. `daemonset` is the name of the one
    that serves the group, None where none can. `prebuild` is whether a Job has to build now. `unbuilt` is
    whether its set is to come from a Job and is not known to be there: until it is nodes keep their driver.
    """

    version: Optional[str]
    kernel: Optional[str]
    flavour: str
    arch: Optional[str]
    nodes: tuple[str, ...]
    toolkit: Optional[Toolkit]
    daemonset: Optional[str]
    prebuild: bool
    state: str
    reasons: tuple[Reason, ...] = ()
    coming: bool = False
    unbuilt: bool = False

    @property
    def blocked(self) -> bool:
        """Whether a person has to do something."""
        return self.state in BLOCKED


@frozen
class DaemonSetWanted:
    """The one DaemonSet of an RHCOS version. Without a `toolkit` image its pods serve from store and
    registry.
    """

    version: str
    name: str
    toolkit: Optional[str]


@frozen
class PrebuildWanted:
    """A Job that builds for a kernel that runs nowhere yet. `kernel` is None for the toolkit's own
    default.
    """

    name: str
    key: str
    version: str
    toolkit: str
    arch: str
    kernel: Optional[str]


@frozen
class NodeLabel:
    """A node whose label of ours is not as it has to be; `value` None takes it away."""

    node: str
    value: Optional[str]


@frozen
class Plan:
    """What the cluster needs. `remove` and `remove_jobs` are names of ours that nothing needs any more."""

    groups: tuple[Group, ...] = ()
    daemonsets: tuple[DaemonSetWanted, ...] = ()
    prebuilds: tuple[PrebuildWanted, ...] = ()
    labels: tuple[NodeLabel, ...] = ()
    remove: tuple[str, ...] = ()
    remove_jobs: tuple[str, ...] = ()
    reasons: tuple[Reason, ...] = ()
    """What concerns no group: an unreadable node, a DaemonSet that waits for its last pods."""

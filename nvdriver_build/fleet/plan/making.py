"""Facts in, plan out, and nothing else: `make_plan`."""

from __future__ import annotations

from collections import defaultdict
from typing import Iterable, Mapping, Optional, Union

from attrs import evolve, frozen

from nvdriver_build.fleet.facts import Cluster, Job, Node
from nvdriver_build.fleet.names import PREBUILD
from nvdriver_build.fleet.plan.coming import (
    coming_kinds,
    coming_reasons,
    coming_tags,
    latest_without_version,
)
from nvdriver_build.fleet.plan.groups import Kind, excluded, gpu_groups, kind_of, reasons_of
from nvdriver_build.fleet.plan.judging import judge
from nvdriver_build.fleet.plan.removals import other_masters, removals
from nvdriver_build.fleet.plan.toolkits import Found, find_toolkit
from nvdriver_build.fleet.plan.values import (
    CAN_BUILD,
    PREBUILD_FAILED,
    PREBUILD_WANTED,
    PREBUILDING,
    DaemonSetWanted,
    Group,
    NodeLabel,
    Options,
    Plan,
    PrebuildWanted,
    Sets,
    UnknownSets,
)
from nvdriver_build.fleet.reasons import Reason
from nvdriver_build.fleet.versions import digest, label_value, object_name


def make_plan(cluster: Cluster, options: Optional[Options] = None, sets: Optional[Sets] = None) -> Plan:
    """What this cluster needs. Equal facts give equal plans, in whatever order the facts come.

    `sets` is asked once for each kernel. Nothing raises: what cannot be served is a group that says why.
    """
    return _Planner(cluster, options or Options(), sets or UnknownSets()).plan()


def prebuild_key(options: Options, image: str, flavour: str, arch: str, kernel: Optional[str]) -> str:
    """What a prebuild is of: the toolkit's image, the kernel in it, and all that changes the modules."""
    return digest("\n".join((options.driver, image, flavour, arch, kernel or "")))


@frozen
class _Planner:
    cluster: Cluster
    options: Options
    sets: Sets

    def plan(self) -> Plan:
        here = gpu_groups(self.cluster)
        ahead = self._ahead(here)
        found = _one_image_each(
            {kind: (self._find(kind), len(here.get(kind, ()))) for kind in (*here, *ahead)}
        )
        images = {kind.version: each.image for kind, each in found.items() if kind.version and each.image}
        versions = sorted({str(kind.version) for kind in found if kind.served})
        jobs = {job.key: job for job in sorted(self.cluster.jobs, key=lambda job: job.name) if job.key}
        groups = [self._group(kind, here.get(kind, []), each, jobs) for kind, each in found.items()]
        wanted = [DaemonSetWanted(each, self._name(each), images.get(each)) for each in versions]
        keys = {self._key(kind, each.image) for kind, each in found.items() if kind.served}
        gone = removals(self.cluster, [each.name for each in wanted], versions, keys)
        return Plan(
            groups=tuple(groups),
            daemonsets=tuple(wanted),
            prebuilds=tuple(self._prebuild(group) for group in groups if group.prebuild),
            labels=tuple(self._labels()),
            remove=gone.daemonsets,
            remove_jobs=gone.jobs,
            reasons=(*self._reasons(), *gone.reasons, *self.sets.reasons()),
        )

    def _ahead(self, here: Mapping[Kind, list[Node]]) -> list[Kind]:
        versions = {kind.version for kind in here if kind.version}
        tags = coming_tags(self.cluster, versions)
        return [kind for tag in tags for kind in coming_kinds(tag, here)]

    def _find(self, kind: Kind) -> Found:
        if kind.version is None or not kind.served:
            return Found(None)
        stream, overrides = self.cluster.imagestream, self.options.overrides
        return find_toolkit(kind.version, kind.kernel, str(kind.arch), stream, overrides)

    def _group(self, kind: Kind, nodes: list[Node], found: Found, jobs: Mapping[str, Job]) -> Group:
        job, there = jobs.get(self._key(kind, found.image)), None
        if kind.served and kind.kernel is not None:
            built = job is not None and job.state == "done"
            there = self.sets.has(kind.kernel, str(kind.arch), built)
        verdict = judge(kind, bool(nodes), found, there, job, self.options.prebuild)
        first = reasons_of(nodes) if nodes else coming_reasons(self.cluster)
        return Group(
            version=kind.version,
            kernel=kind.kernel,
            flavour=kind.flavour,
            arch=kind.arch,
            nodes=tuple(node.name for node in nodes),
            toolkit=found.toolkit,
            daemonset=self._name(kind.version) if kind.version and kind.served else None,
            prebuild=verdict.state in (PREBUILD_WANTED, PREBUILDING),
            state=verdict.state,
            reasons=(*first, *_moving(nodes), *found.reasons, *verdict.reasons),
            coming=not nodes,
            unbuilt=self.options.prebuild and self._unbuilt(verdict.state, there),
        )

    def _unbuilt(self, state: str, there: Optional[bool]) -> bool:
        unknown = state == CAN_BUILD and there is None and self.sets.asks
        return unknown or state in (PREBUILD_WANTED, PREBUILDING, PREBUILD_FAILED)

    def _name(self, version: str) -> str:
        return object_name(self.options.name, version)

    def _key(self, kind: Union[Kind, Group], image: Optional[str]) -> str:
        return prebuild_key(self.options, image or "", kind.flavour, str(kind.arch), kind.kernel)

    def _prebuild(self, group: Group) -> PrebuildWanted:
        assert group.version and group.arch and group.toolkit and group.toolkit.image
        image = group.toolkit.image
        key = self._key(group, image)
        name = object_name(f"{self.options.name}-{PREBUILD}", group.version, key)
        return PrebuildWanted(name, key, group.version, image, group.arch, group.kernel)

    def _labels(self) -> Iterable[NodeLabel]:
        """The labels that are not as they have to be."""
        for node in sorted(self.cluster.nodes, key=lambda node: node.name):
            if node.gpu and node.version is None:
                continue  # whoever does not say it now may say it again in a moment
            served = node.gpu and kind_of(node).served and not self.options.nfd_label
            value = label_value(node.version) if node.version and served else None
            if value != node.label:
                yield NodeLabel(node.name, value)

    def _reasons(self) -> list[Reason]:
        stream = self.cluster.imagestream
        told = [*self.cluster.reasons, *(stream.reasons if stream else ())]
        return [
            *told,
            *latest_without_version(self.cluster),
            *excluded(self.cluster),
            *other_masters(self.cluster),
        ]


def _moving(nodes: list[Node]) -> list[Reason]:
    moving = [node.name for node in nodes if node.updating]
    message = f"{len(moving)} of {len(nodes)} nodes are being changed by the Machine Config Operator"
    return [Reason("Updating", message)] if moving else []


def _one_image_each(found: Mapping[Kind, tuple[Found, int]]) -> dict[Kind, Found]:
    """One DaemonSet has one toolkit: of a version's groups the one with most nodes chooses."""
    nodes: dict[tuple[Optional[str], str], int] = defaultdict(int)
    for kind, (each, count) in found.items():
        if each.image is not None:
            nodes[kind.version, each.image] += count
    chosen: dict[Optional[str], str] = {}
    for version, image in sorted(nodes, key=lambda each: (-nodes[each], each[1])):
        chosen.setdefault(version, image)
    return {
        kind: each
        if each.image in (None, chosen.get(kind.version))
        else _outvoted(each, str(chosen[kind.version]))
        for kind, (each, _) in found.items()
    }


def _outvoted(found: Found, image: str) -> Found:
    message = f"most nodes of this version have another toolkit, {image}, and a version has one DaemonSet"
    hint = "let the registry serve these nodes, or give one toolkit for all of them with --toolkit"
    return evolve(found, usable=False, reasons=(*found.reasons, Reason("OtherToolkit", message, hint)))

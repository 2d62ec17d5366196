"""The planner: each rule in a table, and what holds for any cluster."""

from __future__ import annotations

import json
import random
import re
from typing import Any, List, Mapping, Optional, Sequence

import pytest
from cluster_objects import (
    GPU,
    K1,
    K2,
    NFD,
    V1,
    V2,
    V3,
    daemonset,
    image,
    imagestream,
    imagestreamtag,
    job,
    node,
    pool,
    tag,
)
from hypothesis import given
from hypothesis import strategies as st

from nvdriver_build.fleet.facts import Cluster
from nvdriver_build.fleet.inventory import cluster_facts
from nvdriver_build.fleet.plan import Group, NodeLabel, Options, Plan, make_plan, plan_document, prebuild_key
from nvdriver_build.fleet.reasons import Reason

T1, R10 = "10.1.20260316-0", "10.2.20260616-0"
"""Of RHEL 10."""
NAMES = {version: f"nvdriver-build-{version.replace('.', '-')}" for version in (V1, V2, V3)}


class Registry:
    """Has sets for these kernels, and knows that it has no others."""

    asks = True

    def __init__(self, *kernels: str) -> None:
        self.kernels = kernels

    def has(self, kernel: str, arch: str, built: bool = False) -> Optional[bool]:
        return kernel in self.kernels

    def reasons(self) -> List[Reason]:
        return []


def plan_of(nodes: Sequence[object], stream: Optional[object], **more: Any) -> Plan:
    return make_plan(cluster_facts(nodes, stream, **more))


def codes(reasons: Any) -> List[str]:
    return [reason.code for reason in reasons]


def only(plan: Plan) -> Group:
    (group,) = plan.groups
    return group


def test_one_version() -> None:
    """Nodes of one kind are a group with the toolkit of their version, and a DaemonSet."""
    plan = plan_of([node("b"), node("a"), node("control", labels={})], imagestream(V1))
    group = only(plan)
    assert (group.version, group.kernel, group.flavour, group.arch) == (V1, K1, "standard", "x86_64")
    assert group.nodes == ("a", "b") and not group.coming and not group.blocked
    assert group.toolkit and (group.toolkit.tag, group.toolkit.image) == (V1, image(V1))
    assert (group.toolkit.rule, group.daemonset, group.state) == ("osimage-tag", NAMES[V1], "can build")
    assert [each.toolkit for each in plan.daemonsets] == [image(V1)]
    assert plan.labels == (NodeLabel("a", V1), NodeLabel("b", V1))
    assert not plan.prebuilds and not plan.remove


def test_labels_converge() -> None:
    """Once the labels are as wanted, nothing is to do; a node that lost its GPU loses its label."""
    ours = {**GPU, "nvdriver-build/os-version": V1}
    gone = {f"{NFD}pci-10de.present": "false", "nvdriver-build/os-version": V1}
    plan = plan_of(
        [node("a", labels=ours), node("b", labels=gone), node("c", V2, labels=ours)], imagestream(V1, V2)
    )
    assert plan.labels == (NodeLabel("b", None), NodeLabel("c", V2))


def test_a_node_that_says_nothing_keeps_its_label() -> None:
    """A kubelet that does not name its system for a moment costs no driver."""
    silent = node("a", labels={**GPU, "nvdriver-build/os-version": V1}, os_image="Unknown")
    assert plan_of([silent], imagestream(V1)).labels == ()


def test_stale_label_changes_nothing() -> None:
    """The node is believed, and each stale label is told once with the names of its nodes."""
    stale = {**GPU, f"{NFD}system-os_release.OSTREE_VERSION": f"'{V1}'"}
    group = only(plan_of([node(f"n{i}", V2, labels=stale) for i in range(5)], imagestream(V2)))
    assert group.version == V2 and codes(group.reasons)[0] == "StaleLabel"
    assert group.reasons[0].message.startswith("n0, n1, n2 and 2 more: NFD's label OSTREE_VERSION is stale")


@pytest.mark.parametrize(
    ("has", "state"), [((K2,), "set available"), ((), "no toolkit")], ids=["served", "not served"]
)
def test_no_tag(has: Sequence[str], state: str) -> None:
    """The registry serves a version without a tag if it has a set; else its state says so. `latest` is not
    taken.
    """
    cluster = cluster_facts([node("a", V2)], imagestream(V1, latest=V1))
    plan = make_plan(cluster, Options(), Registry(*has))
    group = plan.groups[0]
    assert (group.toolkit, group.daemonset, group.state) == (None, NAMES[V2], state)
    assert plan.daemonsets[1].toolkit is None
    assert group.reasons[0].code == "NoToolkit" and f"--toolkit {V2}=IMAGE" in group.reasons[0].hint


def test_without_imagestream() -> None:
    """A cluster without one is told so; the DaemonSet still serves from store and registry."""
    plan = plan_of([node("a")], None)
    assert only(plan).state == "no toolkit" and codes(only(plan).reasons)[0] == "NoImageStream"
    assert len(plan.daemonsets) == 1


def test_broken_toolkit() -> None:
    """A toolkit whose kernel is not the node's is named with both kernels, and not used."""
    plan = plan_of([node("a", V1)], imagestream(V1), tags=[imagestreamtag(V1, K2)])
    group = only(plan)
    assert group.state == "broken toolkit" and group.toolkit and group.toolkit.tag == V1
    assert K1 in group.reasons[0].message and K2 in group.reasons[0].message
    assert plan.daemonsets[0].toolkit is None


def test_toolkit_by_label() -> None:
    """Where the tag is missing or broken, an image whose label names the very kernel is taken."""
    tags = [imagestreamtag(V2, K1)]
    for stream in (imagestream(V2), imagestream(V1, V2, latest=V2)):
        more = [imagestreamtag(V1, "5.14.0-1.el9.x86_64")]
        plan = plan_of([node("a", V1)], stream, tags=[*tags, *more])
        toolkit = plan.groups[0].toolkit
        assert toolkit and (toolkit.tag, toolkit.rule) == (V2, "kernel-label")
        assert plan.groups[0].state == "can build" and codes(plan.groups[0].reasons)[1] == "FoundByLabel"


def test_override() -> None:
    """A toolkit that a person gives goes before everything."""
    cluster = cluster_facts([node("a")], imagestream(V1))
    group = only(make_plan(cluster, Options(overrides={V1: "quay.io/mine@sha256:1"})))
    assert group.toolkit and (group.toolkit.tag, group.toolkit.rule) == (None, "override")


@pytest.mark.parametrize(
    ("kernel", "label", "rt", "usable"),
    [
        (K1, "5.14.0-427.33.1.el9_4", "", True),
        (f"{K1}+rt", K1, f"{K1}+rt", True),
        (f"{K1}+rt", K1, "package kernel-rt-core is not installed", True),
        (f"{K1}+rt", K2, "", False),
        (f"{K1}+rt", K1, f"{K2}+rt", False),
        ("5.14.0-284.11.1.rt14.296.el9_2.x86_64", "5.14.0-284.11.1.el9_2.x86_64", "", True),
        ("5.14.0-427.33.1.el9_4.aarch64+64k", K1, "", True),
        ("5.14.0-427.33.1.el9_4.aarch64", K1, "", True),
        (K1, "junk", "", True),
    ],
)
def test_labels_of_images(kernel: str, label: str, rt: str, usable: bool) -> None:
    """Labels may lack the architecture, be of another one, or be junk: only a contradiction breaks a
    toolkit.
    """
    plan = plan_of([node("a", V1, kernel)], imagestream(V1), tags=[imagestreamtag(V1, label, rt)])
    assert (only(plan).state == "can build") is usable


def test_toolkit_of_another_architecture() -> None:
    """An image that is known to be for x86_64 only is broken for arm64; the others keep it."""
    arm = node("arm", V1, K1.replace("x86_64", "aarch64"), arch="arm64")
    plan = plan_of([node("a"), arm], imagestream(V1), tags=[imagestreamtag(V1)])
    assert {group.arch: group.state for group in plan.groups} == {
        "x86_64": "can build",
        "arm64": "broken toolkit",
    }
    assert [each.toolkit for each in plan.daemonsets] == [image(V1)]


def test_flavours_and_architectures() -> None:
    """Kernels of one version are groups of their own, and share its DaemonSet."""
    arm = K1.replace("x86_64", "aarch64")
    nodes = [node("a"), node("b", V1, f"{K1}+rt"), node("c", V1, f"{arm}+64k", arch="arm64")]
    plan = plan_of(nodes, imagestream(V1))
    assert sorted(group.flavour for group in plan.groups) == ["64k", "rt", "standard"]
    assert {group.daemonset for group in plan.groups} == {NAMES[V1]} and len(plan.daemonsets) == 1


def test_one_toolkit_for_a_version() -> None:
    """Where labels lead groups of a version to different images, most nodes choose, and the others are
    told.
    """
    nodes = [node("a"), node("b"), node("c", V1, K2)]
    plan = plan_of(nodes, imagestream(V2, V3), tags=[imagestreamtag(V2, K2), imagestreamtag(V3, K1)])
    states = {group.kernel: group.state for group in plan.groups if not group.coming}
    assert states == {K1: "can build", K2: "broken toolkit"}
    assert plan.daemonsets[0].toolkit == image(V3)


@pytest.mark.parametrize(
    ("arch", "os_image", "code"),
    [
        ("ppc64le", None, "Architecture"),
        ("amd64", "Red Hat Enterprise Linux 9.4 (Plow)", "NotCoreOS"),
        ("amd64", "", "NoVersion"),
    ],
)
def test_unsupported(arch: str, os_image: Optional[str], code: str) -> None:
    """No DaemonSet, no label, and the reason."""
    plan = plan_of([node("a", V1, arch=arch, os_image=os_image)], imagestream(V1, latest=V2))
    assert only(plan).state == "unsupported" and code in codes(only(plan).reasons) and only(plan).blocked
    assert not plan.daemonsets and not plan.labels


def coming(plan: Plan) -> List[Optional[str]]:
    return [group.version for group in plan.groups if group.coming]


@pytest.mark.parametrize(
    ("running", "stream", "expected"),
    [
        ([V1], imagestream(V1), []),
        ([V1], imagestream(V1, V2), [V2]),
        ([V1, V2], imagestream(V1, V2), []),
        ([V2], imagestream(V1, V2), []),
        ([V2], imagestream(V1, V2, latest=V1), [V1]),
        ([V1], imagestream(V1, V2, V3), [V3]),
        ([V1], imagestream(V1, latest=V2), []),
        ([V1], imagestream(V1, V2, R10, latest=V2, more=[tag("latest-rhel-10", image(R10))]), [V2]),
        ([V1, T1], imagestream(V1, R10, latest=V1, more=[tag("latest-rhel-10", image(R10))]), [R10]),
        ([V1], imagestream(V1, V2, more=[tag("stable", image(V2))]), [V2]),
        ([], imagestream(V1), []),
    ],
    ids=[
        "settled",
        "begins",
        "half way",
        "done",
        "rollback",
        "skipped",
        "tag late",
        "the other stream",
        "a node of the other stream",
        "alias",
        "no GPU",
    ],
)
def test_what_is_coming(running: Sequence[str], stream: object, expected: Sequence[str]) -> None:
    """The version whose tag has the image of `latest`, and which no GPU node runs: nodes of the control
    plane go first.
    """
    nodes = [node(f"gpu-{version}", version) for version in running]
    nodes.append(node("control", V2, labels={}))
    plan = plan_of(nodes, stream)
    assert coming(plan) == expected
    assert {each.version for each in plan.daemonsets} == {*running, *expected}


@pytest.mark.parametrize(
    ("gpu_pool", "worker", "expected"),
    [(None, None, [V2]), ("rhel-9", None, [V2]), ("rhel-10", None, [V2, R10]), (None, "rhel-10", [V2, R10])],
)
def test_a_pool_names_its_stream(gpu_pool: Optional[str], worker: Optional[str], expected: List[str]) -> None:
    """`latest-rhel-10` is coming only where a pool of GPU nodes names it, or `worker`, which they may follow;
    not for another pool's sake.
    """
    roles = {"gpu": gpu_pool, "worker": worker, "master": "rhel-10"}
    pools = [pool(name) for name in roles]
    for each in pools:
        named = roles[each["metadata"]["name"]]
        each["spec"]["osImageStream"] = {"name": named} if named else {}
    labels = {**GPU, "node-role.kubernetes.io/gpu": "", "node-role.kubernetes.io/worker": ""}
    stream = imagestream(V1, V2, R10, latest=V2, more=[tag("latest-rhel-10", image(R10))])
    plan = plan_of([node("a", labels=labels)], stream, pools=pools)
    assert coming(plan) == sorted(expected)


def test_prebuild() -> None:
    """A coming version is built ahead for each flavour and architecture in use, by the kernel that its
    image names.
    """
    nodes = [
        node("a"),
        node("b", V1, f"{K1}+rt"),
        node("c", V1, K1.replace("x86_64", "aarch64"), arch="arm64"),
    ]
    told = imagestreamtag(V2, K2.replace(".x86_64", ""), f"{K2}+rt")
    told["image"]["dockerImageManifests"] = [{"architecture": "arm64"}]
    plan = plan_of(nodes, imagestream(V1, V2), tags=[told])
    assert sorted(str(each.kernel) for each in plan.prebuilds) == [
        K2.replace("x86_64", "aarch64"),
        K2,
        f"{K2}+rt",
    ]
    assert all(each.toolkit == image(V2) for each in plan.prebuilds)
    assert len({each.name for each in plan.prebuilds}) == 3


def test_prebuild_of_an_unknown_kernel() -> None:
    """Without labels the toolkit's own default is built; which RT kernel it holds cannot be known."""
    plan = plan_of([node("a"), node("b", V1, f"{K1}+rt")], imagestream(V1, V2))
    assert [(each.kernel, each.arch) for each in plan.prebuilds] == [(None, "x86_64")]
    states = {group.flavour: group.state for group in plan.groups if group.coming}
    assert states == {"standard": "prebuild wanted", "rt": "can build"}


@pytest.mark.parametrize(
    ("state", "told", "wanted"),
    [("active", "prebuilding", True), ("done", "prebuilt", False), ("failed", "prebuild failed", False)],
)
def test_life_of_a_prebuild(state: str, told: str, wanted: bool) -> None:
    """The state is the Job's; one that failed is not tried again by itself, and its hint says how."""
    key = prebuild_key(Options(), image(V2), "standard", "x86_64", None)
    plan = plan_of([node("a")], imagestream(V1, V2), jobs=[job(key, state, message="deadline")])
    group = plan.groups[1]
    assert (group.state, group.prebuild, bool(plan.prebuilds)) == (told, wanted, wanted)
    assert plan.remove_jobs == ()
    if state == "failed":
        assert "deadline" in group.reasons[-1].message and "delete job prebuild-1" in group.reasons[-1].hint


class Silent(Registry):
    """It does not answer."""

    def has(self, kernel: str, arch: str, built: bool = False) -> Optional[bool]:
        return None


@pytest.mark.parametrize(
    ("sets", "possible", "job_state", "state", "told", "wanted"),
    [
        (Registry(), True, None, "prebuild wanted", "PrebuildWanted", True),
        (Registry(), True, "active", "prebuilding", "Prebuilding", True),
        (Registry(), True, "failed", "prebuild failed", "PrebuildFailed", False),
        (Registry(), True, "done", "prebuild wanted", "PrebuildGone", True),
        (Silent(), True, "done", "set available", "SetThere", False),
        (Registry(), False, None, "can build", "BuildsOnNode", False),
        (Silent(), True, None, "can build", "BuildsOnNode", False),
        (None, True, None, "can build", "BuildsOnNode", False),
    ],
    ids=["lacking", "running", "failed", "gone", "built", "nowhere to publish to", "not known", "not asked"],
)
def test_a_job_builds_for_nodes_that_are_there(
    sets: Optional[Registry], possible: bool, job_state: Optional[str], state: str, told: str, wanted: bool
) -> None:
    """A first installation, or another driver: where the registry says that it has no set a Job builds it,
    since nodes have no key. Until it is there, or as long as that may still turn out, they keep their driver.
    """
    key = prebuild_key(Options(), image(V1), "standard", "x86_64", K1)
    jobs = [job(key, job_state)] if job_state else []
    cluster = cluster_facts([node("a")], imagestream(V1), jobs=jobs)
    plan = make_plan(cluster, Options(prebuild=possible), sets)
    group = only(plan)
    assert (group.state, codes(group.reasons)) == (state, [told])
    assert [(each.version, each.kernel, each.key) for each in plan.prebuilds] == (
        [(V1, K1, key)] if wanted else []
    )
    waits = state.startswith("prebuild") or (possible and isinstance(sets, Silent) and job_state is None)
    assert group.unbuilt is waits
    assert plan.remove_jobs == ()


def test_each_kernel_has_a_job_of_its_own() -> None:
    """Two kernels of one version (a patched pool) with one toolkit for both: what one Job built is no word
    about the other.
    """
    nodes = [node("a"), node("b", V1, K1.replace(".el9", ".99.el9"))]
    other = Options(overrides={V1: "quay.io/dtk"})
    first = make_plan(cluster_facts(nodes, imagestream(V1)), other, Registry())
    assert len({each.name for each in first.prebuilds}) == len({each.key for each in first.prebuilds}) == 2
    done = job(first.prebuilds[0].key, "done")
    after = make_plan(cluster_facts(nodes, imagestream(V1), jobs=[done]), other, Silent())
    assert sorted(group.state for group in after.groups) == ["can build", "set available"]


def test_prebuild_is_remembered() -> None:
    """Once nodes run the version, its Job says that a set is there; a Job of another driver or version
    goes.
    """
    key = prebuild_key(Options(), image(V2), "standard", "x86_64", K2)
    jobs = [job(key, "done"), job("other", "active", name="old")]
    plan = plan_of([node("a", V2)], imagestream(V1, V2), jobs=jobs)
    assert only(plan).state == "set available" and plan.remove_jobs == ("old",)


def test_no_prebuild_without_a_registry() -> None:
    """Where nothing can be published, the first node builds, and the plan says what would change that."""
    plan = make_plan(cluster_facts([node("a")], imagestream(V1, V2)), Options(prebuild=False))
    assert not plan.prebuilds and codes(plan.groups[1].reasons)[-1] == "NoPrebuild"


def test_paused_pools() -> None:
    """What is coming is built ahead of a paused pool, too, which is named."""
    roles = {**GPU, "node-role.kubernetes.io/gpu": ""}
    version = {"status": {"desired": {"version": "4.17.3"}, "history": [{"state": "Partial"}]}}
    pools = [pool("gpu", paused=True), pool("worker", paused=True)]
    plan = plan_of([node("a", labels=roles)], imagestream(V1, V2), pools=pools, cluster_version=version)
    group = plan.groups[1]
    assert group.prebuild and codes(group.reasons)[:2] == ["Coming", "PoolsPaused"]
    assert "4.17.3" in group.reasons[0].message and "the pools gpu" in group.reasons[1].message


@pytest.mark.parametrize(
    ("nodes", "stream", "pods", "removed", "code"),
    [
        ([node("a", V2)], imagestream(V1, V2), 0, True, None),
        ([node("a", V2)], imagestream(V1, V2), 1, False, "PodsLeft"),
        ([node("a", V2)], imagestream(V1, V2), None, False, "PodsUnknown"),
        ([node("a", V2), node("c", V1, labels={})], imagestream(V1, V2), 0, False, "VersionPresent"),
        ([node("a", V2), node("b", V1)], imagestream(V1, V2), 0, False, None),
        ([node("a", V2)], imagestream(V1, V2, latest=V1), 0, False, None),
        ([], imagestream(V2), 0, True, None),
        ([node("a", V2)], None, 0, False, None),
    ],
    ids=["gone", "pods", "unknown", "no GPU", "half way", "rollback", "no nodes", "no stream"],
)
def test_removal(nodes: Any, stream: Any, pods: Optional[int], removed: bool, code: Optional[str]) -> None:
    """A DaemonSet goes when no node has its version, none is coming to it, and its last pod is gone."""
    plan = plan_of(nodes, stream, daemonsets=[daemonset(V1, NAMES[V1], pods)])
    assert plan.remove == ((NAMES[V1],) if removed else ())
    assert code is None or code in codes(plan.reasons)


def test_other_drivers() -> None:
    """What is not ours is never removed; a second master, with pods, is told."""
    theirs = [daemonset(V1, f"nvidia-driver-daemonset-{V1}", 3, ours=False)]
    theirs.append(daemonset(V2, "another", 0, ours=False))
    plan = plan_of([node("a", V3)], imagestream(V3), daemonsets=theirs)
    assert plan.remove == () and codes(plan.reasons) == ["OtherDriver"]


def test_second_daemonset_of_a_version() -> None:
    """Of two DaemonSets for one version the one of another name is told, and left alone."""
    plan = plan_of([node("a")], imagestream(V1), daemonsets=[daemonset(V1, "hand-made", 0)])
    assert plan.remove == () and codes(plan.reasons) == ["DaemonSetTwice"]


def test_single_node() -> None:
    """One node, from one version to the next: prebuilt on it before it reboots, the old DaemonSet gone
    after.
    """
    before = plan_of([node("a")], imagestream(V1, V2))
    assert before.groups[1].prebuild and len(before.daemonsets) == 2
    after = plan_of(
        [node("a", V2)],
        imagestream(V1, V2),
        daemonsets=[daemonset(V1, NAMES[V1]), daemonset(V2, NAMES[V2], 1)],
    )
    assert after.remove == (NAMES[V1],) and len(after.daemonsets) == 1


def test_document() -> None:
    """The fields of contracts.md; what is not known is null."""
    document = plan_document(plan_of([node("a")], None))
    assert document["groups"][0]["toolkit"] is None
    assert json.loads(json.dumps(document)) == document


# Any cluster: versions and kernels that belong together or not, tags that are late or wrong, old DaemonSets.
_VERSIONS = st.sampled_from([V1, V2, V3, "416.9.202411211032-0", "", "x", "9.6"])
_KERNELS = st.sampled_from([K1, K2, f"{K1}+rt", "5.14.0-427.33.1.el9_4.aarch64+64k", "", "junk junk"])
_LABELS = st.sampled_from([GPU, GPU, GPU, {}, {**GPU, "nvdriver-build/gpu": "false"}])
_STALE = st.sampled_from([V1, V2, f"'{V3}'", "?", None])


@st.composite
def _nodes(draw: st.DrawFn) -> List[Any]:
    found = []
    for number in range(draw(st.integers(0, 7))):
        labels, stale, ours = dict(draw(_LABELS)), draw(_STALE), draw(_STALE)
        labels.update({f"{NFD}system-os_release.OSTREE_VERSION": stale} if stale else {})
        labels.update({"nvdriver-build/os-version": ours} if ours else {})
        arch = draw(st.sampled_from(["amd64", "amd64", "arm64", "s390x"]))
        found.append(node(f"n{number}", draw(_VERSIONS), draw(_KERNELS), arch=arch, labels=labels))
    return found


@st.composite
def _clusters(draw: st.DrawFn) -> Mapping[str, Any]:
    tags = draw(st.lists(_VERSIONS, max_size=5))
    latest = draw(st.none() | _VERSIONS)
    told = draw(st.lists(st.builds(imagestreamtag, _VERSIONS, _KERNELS), max_size=4))
    sets = st.builds(
        daemonset, _VERSIONS, st.sampled_from([*NAMES.values(), "x"]), st.sampled_from([None, 0, 2])
    )
    return {
        "nodes": draw(_nodes()),
        "imagestream": draw(st.none() | st.just(imagestream(*dict.fromkeys(tags), latest=latest))),
        "tags": told,
        "daemonsets": draw(st.lists(sets, max_size=3, unique_by=lambda each: each["metadata"]["name"])),
        "pools": [pool("worker", paused=draw(st.booleans()))],
    }


def _facts(given_: Mapping[str, Any]) -> Cluster:
    more = dict(given_)
    return cluster_facts(more.pop("nodes"), more.pop("imagestream"), **more)


@pytest.mark.once
@given(_clusters(), st.randoms(use_true_random=False))
def test_order_does_not_matter(cluster: Mapping[str, Any], chance: random.Random) -> None:
    """Equal facts in any order give the same bytes."""
    mixed = {
        name: chance.sample(value, len(value)) if isinstance(value, list) and name != "tags" else value
        for name, value in cluster.items()
    }
    plans = [make_plan(_facts(each)) for each in (cluster, mixed, cluster)]
    assert plans[0] == plans[1] == plans[2]
    texts = {json.dumps(plan_document(plan)) for plan in plans}
    assert len(texts) == 1


@pytest.mark.once
@given(_clusters())
def test_what_holds_for_any_plan(cluster: Mapping[str, Any]) -> None:
    """One DaemonSet for a version; none removed that nodes or pods need; each group is explained, each node
    in one.
    """
    facts = _facts(cluster)
    plan = make_plan(facts)
    wanted = {each.version: each for each in plan.daemonsets}
    assert len(wanted) == len(plan.daemonsets) == len({each.name for each in plan.daemonsets})
    present = {each.version for each in facts.nodes}
    for each in facts.daemonsets:
        if each.name in plan.remove:
            assert each.ours and each.pods == 0 and each.version not in present | set(wanted)
    grouped = [name for group in plan.groups for name in group.nodes]
    assert sorted(grouped) == sorted(each.name for each in facts.nodes if each.gpu)
    for group in plan.groups:
        assert group.reasons and all(reason.message for reason in group.reasons)
        assert (group.daemonset is None) == (group.state == "unsupported")
        assert not group.blocked or any(reason.hint for reason in group.reasons)
        assert group.version in wanted or group.daemonset is None
    for prebuild in plan.prebuilds:
        assert prebuild.version not in present - {each.version for each in facts.nodes if not each.gpu}
        assert prebuild.version in wanted


@pytest.mark.once
@given(_clusters())
def test_labels_follow_the_node(cluster: Mapping[str, Any]) -> None:
    """After a round every GPU node that can be served has the version that it runs as its label, no other
    has one, but for those that do not say what they run: these keep theirs.
    """
    facts = _facts(cluster)
    changes = {each.node: each.value for each in make_plan(facts).labels}
    served = re.compile("x86_64|arm64")
    for each in facts.nodes:
        label = changes.get(each.name, each.label)
        wanted = each.version if each.gpu and served.fullmatch(each.arch or "") else None
        assert label == (each.label if each.gpu and each.version is None else wanted)

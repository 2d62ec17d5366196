"""API objects to facts: every shape that was seen, and anything else, which never raises."""

from __future__ import annotations

import re
from typing import Any, Dict, Mapping, Optional

import pytest
from cluster_objects import GPU, K1, NFD, V1, V2, image, imagestream, imagestreamtag, job, node, pool, tag
from hypothesis import given
from hypothesis import strategies as st

from nvdriver_build.fleet.facts import Cluster, Node, Tag
from nvdriver_build.fleet.inventory import (
    cluster_facts,
    cluster_version_facts,
    daemonset_facts,
    imagestream_facts,
    job_facts,
    node_facts,
    nodes_facts,
    pool_facts,
)
from nvdriver_build.fleet.plan import make_plan, plan_document
from nvdriver_build.fleet.versions import (
    flavour_of,
    is_version,
    label_value,
    object_name,
    os_version,
    parts,
    rhel_of,
)


def facts(document: object) -> Node:
    found = node_facts(document)
    assert found is not None
    return found


def codes(reasons: Any) -> list[str]:
    return [reason.code for reason in reasons]


@pytest.mark.parametrize(
    ("os_image", "version"),
    [
        ("Red Hat Enterprise Linux CoreOS 416.94.202408260940-0", V1),
        ("Red Hat Enterprise Linux CoreOS 410.84.202207140725-0 (Ootpa)", "410.84.202207140725-0"),
        ("Red Hat Enterprise Linux CoreOS 416.94.202408260940-0 (Plow)", V1),
        ("Red Hat Enterprise Linux CoreOS 9.6.20260616-0 (Plow)", "9.6.20260616-0"),
        ("Red Hat Enterprise Linux CoreOS 10.2.20260616-0 (Coughlan)", "10.2.20260616-0"),
        ("CentOS Stream CoreOS 416.9.202411211032-0", "416.9.202411211032-0"),
        ("CentOS Stream CoreOS 10.0.20260616-0", "10.0.20260616-0"),
        ("Fedora CoreOS 39.20240210.3.0", "39.20240210.3.0"),
        ("'Red Hat Enterprise Linux CoreOS 416.94.202408260940-0 (Plow)'", V1),
        ('"Red Hat Enterprise Linux CoreOS 416.94.202408260940-0"', V1),
        ("  Red Hat Enterprise Linux CoreOS  416.94.202408260940-0  ", V1),
        ("Red Hat Enterprise Linux CoreOS", None),
        ("Red Hat Enterprise Linux CoreOS 416.94.202408260940-0x", None),
        ("Red Hat Enterprise Linux 9.4 (Plow)", None),
        ("Ubuntu 24.04.1 LTS", None),
        ("", None),
    ],
)
def test_version_of_os_image(os_image: str, version: Optional[str]) -> None:
    """Every shape of nodeInfo.osImage gives its RHCOS version, and what is none gives none."""
    assert os_version(os_image) == version


@pytest.mark.parametrize(
    ("kernel", "base", "arch", "flavour"),
    [
        ("5.14.0-427.13.1.el9_4.x86_64", "5.14.0-427.13.1.el9_4", "x86_64", "standard"),
        ("5.14.0-427.13.1.el9_4", "5.14.0-427.13.1.el9_4", None, "standard"),
        ("5.14.0-427.13.1.el9_4.x86_64+rt", "5.14.0-427.13.1.el9_4", "x86_64", "rt"),
        ("5.14.0-427.13.1.el9_4.x86_64_rt", "5.14.0-427.13.1.el9_4", "x86_64", "rt"),
        ("5.14.0-427.13.1.el9_4+rt", "5.14.0-427.13.1.el9_4", None, "rt"),
        ("5.14.0-284.11.1.rt14.296.el9_2.x86_64", "5.14.0-284.11.1.rt14.296.el9_2", "x86_64", "rt"),
        ("5.14.0-570.12.1.el9_6.aarch64+64k", "5.14.0-570.12.1.el9_6", "arm64", "64k"),
        ("5.14.0-570.12.1.el9_6.aarch64+64k-debug", "5.14.0-570.12.1.el9_6", "arm64", "64k"),
        ("5.14.0-570.12.1.el9_6.x86_64+debug", "5.14.0-570.12.1.el9_6", "x86_64", "debug"),
        ("6.12.0-55.el10.x86_64", "6.12.0-55.el10", "x86_64", "standard"),
    ],
)
def test_kernel_names(kernel: str, base: str, arch: Optional[str], flavour: str) -> None:
    """A kernel release has a base, an architecture and a flavour; `_rt` of a label is `+rt`."""
    found = parts(kernel)
    assert (found.base, found.arch, found.flavour) == (base, arch, flavour)
    assert flavour_of(kernel) == flavour


def test_a_node() -> None:
    """What a node says of itself is taken, and nothing is odd about it."""
    assert facts(node("gpu-1", V1, arch="arm64", notes={"x": "y"})) == Node(
        "gpu-1", V1, K1, "arm64", "standard", True, None, True, True, "boot-of-gpu-1"
    )


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("system-os_release.OSTREE_VERSION", f"'{V1}'"),
        ("kernel-version.full", "5.14.0-427.13.1.el9_4.x86_64"),
    ],
)
def test_stale_label(name: str, label: str) -> None:
    """nodeInfo is believed; a label of NFD that says something else is reported with both values."""
    found = facts(node("a", V2, labels={**GPU, f"{NFD}{name}": label}))
    assert found.version == V2 and codes(found.reasons) == ["StaleLabel"]
    assert label.strip("'") in found.reasons[0].message


def test_labels_that_agree() -> None:
    """The quotes of OSTREE_VERSION and the `_` of kernel-version.full are no difference."""
    told = {f"{NFD}system-os_release.OSTREE_VERSION": f"'{V1}'", f"{NFD}kernel-version.full": f"{K1}_rt"}
    assert facts(node("a", V1, f"{K1}+rt", labels={**GPU, **told})).reasons == ()


def test_labels_where_the_node_says_nothing() -> None:
    """Only then NFD's labels count, and that is told."""
    told = {f"{NFD}system-os_release.OSTREE_VERSION": f"'{V1}'", f"{NFD}kernel-version.full": f"{K1}_64k"}
    found = facts(node("a", V1, "", os_image="", labels={**GPU, **told}))
    assert (found.version, found.kernel, found.flavour) == (V1, f"{K1}+64k", "64k")
    assert codes(found.reasons) == ["VersionFromLabel", "KernelFromLabel"]


def test_another_system() -> None:
    """A node that is not CoreOS has no version, whatever a label says."""
    told = {f"{NFD}system-os_release.OSTREE_VERSION": V1}
    found = facts(node("a", os_image="Red Hat Enterprise Linux 9.4 (Plow)", labels={**GPU, **told}))
    assert found.version is None and codes(found.reasons) == ["NotCoreOS"]


@pytest.mark.parametrize(
    ("labels", "gpu", "excluded"),
    [
        ({}, False, None),
        ({f"{NFD}pci-0302_10de.present": "true"}, True, None),
        ({f"{NFD}pci-0300_10de.present": "true"}, True, None),
        ({"nvidia.com/gpu.present": "true"}, True, None),
        ({"nvidia.com/gpu.present": "false"}, False, None),
        ({"nvdriver-build/gpu": "true"}, True, None),
        ({**GPU, "nvdriver-build/gpu": "false"}, False, "nvdriver-build/gpu=false"),
        ({**GPU, "nvidia.com/gpu.deploy.driver": "false"}, False, "nvidia.com/gpu.deploy.driver=false"),
        ({**GPU, "nvidia.com/gpu.deploy.driver": "true"}, True, None),
        (
            {**GPU, "nvidia.com/gpu.deploy.driver": "pre-installed"},
            False,
            "nvidia.com/gpu.deploy.driver=pre-installed",
        ),
        (
            {**GPU, "nvidia.com/gpu.workload.config": "vm-passthrough"},
            False,
            "nvidia.com/gpu.workload.config=vm-passthrough",
        ),
    ],
)
def test_which_nodes_have_a_gpu(labels: Dict[str, str], gpu: bool, excluded: Optional[str]) -> None:
    """By labels of NFD, of the GPU Operator, or by a person's own where there is no NFD; some forbid it."""
    found = facts(node("a", labels=labels))
    assert (found.gpu, found.excluded) == (gpu, excluded)


def test_labels_that_go_away() -> None:
    """A node that has our label keeps its driver while NFD is installed anew, until a label says no."""
    ours = {"nvdriver-build/os-version": V1}
    kept = facts(node("a", labels=ours))
    assert kept.gpu and codes(kept.reasons) == ["GpuLabelsGone"]
    assert not facts(node("a", labels={**ours, f"{NFD}pci-10de.present": "false"})).gpu
    operators = facts(node("a", labels={**ours, "nvidia.com/gpu.present": "false"}))
    assert operators.gpu and codes(operators.reasons) == ["GpuLabelsGone"]


def test_pools() -> None:
    """A node belongs to its custom pool before `worker`; one that is about to change is known."""
    roles = {"node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/gpu": ""}
    config = "machineconfiguration.openshift.io/"
    notes = {f"{config}currentConfig": "rendered-1", f"{config}desiredConfig": "rendered-2"}
    expression = {"key": "node-role.kubernetes.io/gpu", "operator": "Exists"}
    custom = {"metadata": {"name": "gpu"}, "spec": {"nodeSelector": {"matchExpressions": [expression]}}}
    nodes = [node("a", labels=roles, notes=notes), node("b")]
    (first, second), _ = nodes_facts(nodes, [pool("worker"), custom])
    assert (first.pool, first.updating, second.pool, second.updating) == ("gpu", True, None, False)
    found = pool_facts(pool("worker", paused=True))
    assert found is not None and found.paused


def test_imagestream() -> None:
    """Tags of versions by name, `latest` and `latest-rhel-10` apart from them."""
    found = imagestream_facts(imagestream(V2, V1, latest=V2, more=[tag("latest-rhel-10", image("10"))]))
    assert found.tags == (Tag(V1, image(V1)), Tag(V2, image(V2)))
    assert found.latest == (image(V2),) and found.streams == ((10, image("10")),) and found.reasons == ()


def test_odd_tags() -> None:
    """A tag without a name is passed over, one without `from` has no image, of two with one name the first
    is taken.
    """
    odd = [
        {"name": ""},
        {"from": {"name": "x"}},
        {"name": "1.2.3-0"},
        tag(V1, "quay.io/other"),
        tag("7.7.7-0", "a b"),
    ]
    found = imagestream_facts(imagestream(V1, more=odd))
    images = {each.name: each.image for each in found.tags}
    assert images == {V1: image(V1), "1.2.3-0": None, "7.7.7-0": None}
    assert codes(found.reasons) == ["TagWithoutName", "TagWithoutName", "TagTwice"]


def test_latest_by_another_tag() -> None:
    """`latest` may stand for another tag, and a tag without `from` for what was imported last."""
    stream = imagestream(V1, more=[{"name": V2}])
    stream["spec"]["tags"][1]["from"] = {"kind": "ImageStreamTag", "name": V2}
    item = {"dockerImageReference": "quay.io/x@sha256:2"}
    stream["status"] = {"tags": [{"tag": V2, "items": [item]}]}
    found = imagestream_facts(stream)
    assert found.tags[1].image == "quay.io/x@sha256:2"
    loop = imagestream(more=[{"name": "latest", "from": {"kind": "ImageStreamTag", "name": "latest"}}])
    assert imagestream_facts(loop).latest == ()


def test_import_that_failed() -> None:
    """It is told, with the cluster's words; nodes pull by their own mirrors, so the tag stays."""
    stream = imagestream(V1)
    failed = {"type": "ImportSuccess", "status": "False", "message": "unauthorized"}
    stream["status"] = {"tags": [{"tag": V1, "items": None, "conditions": [failed]}]}
    (found,) = imagestream_facts(stream).tags
    assert found.image == image(V1) and "unauthorized" in found.reasons[0].message


@pytest.mark.parametrize("rt", ["", "package kernel-rt-core is not installed", "x" * 100])
def test_labels_of_images(rt: str) -> None:
    """An ImageStreamTag tells which kernel its image is for; junk in the RT label is no kernel."""
    (found,) = imagestream_facts(imagestream(V1), [imagestreamtag(V1, rt=rt)]).tags
    assert (found.kernel, found.rt_kernel, found.archs) == (K1, None, ("x86_64",))


def test_jobs_and_cluster_version() -> None:
    """Their states are those of their conditions."""
    states = [
        job_facts(job("k", state, message="why"), "nvdriver-build") for state in ("active", "done", "failed")
    ]
    assert [each and (each.state, each.message) for each in states] == [
        ("active", None),
        ("done", None),
        ("failed", "why"),
    ]
    assert job_facts(job("k"), "another") is None
    version = {"status": {"desired": {"version": "4.17.3"}, "history": [{"state": "Partial"}]}}
    found = cluster_version_facts(version)
    assert (found.desired, found.progressing) == ("4.17.3", True)


# Anything that JSON can hold, with the names that are looked for and near misses among the rest.
_WORDS = st.sampled_from(
    (
        "metadata name labels annotations spec status tags from kind items tag nodeInfo osImage type image "
        "kernelVersion conditions ImportSuccess False dockerImageMetadata Config Labels kernel-version "
        "latest nodeSelector matchLabels matchExpressions operator values history true "
        f"{V1} {K1} \ud800 \x1b[2J "
    ).split(" ")
)
_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | _WORDS
_JSON = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_WORDS, inner, max_size=6),
    max_leaves=30,
)
_SHAPES: Mapping[str, Any] = {
    "metadata": {"name": "a", "labels": GPU},
    "status": {"nodeInfo": {"osImage": f"CoreOS {V1}", "kernelVersion": K1}, "tags": [], "conditions": []},
    "spec": {"tags": [{"name": V1, "from": {"name": "x"}}], "nodeSelector": {"matchLabels": {}}},
}


@st.composite
def _damaged(draw: st.DrawFn) -> Any:
    """A sound object with anything at one of its places."""

    def damage(value: Any) -> Any:
        if not value or not isinstance(value, dict) or draw(st.integers(0, 3)) == 0:
            return draw(_JSON)
        hit = draw(st.sampled_from(sorted(value)))
        return {name: damage(each) if name == hit else each for name, each in value.items()}

    return damage(dict(_SHAPES))


@pytest.mark.once
@given(st.lists(_JSON | _damaged(), max_size=4), _JSON | _damaged(), st.lists(_JSON | _damaged(), max_size=3))
def test_anything_is_a_fact_or_a_reason(nodes: Any, stream: Any, others: Any) -> None:
    """Whatever an object looks like: facts come of it, a plan, and JSON that can be written."""
    found = cluster_facts(
        nodes, stream, tags=others, cluster_version=stream, pools=others, daemonsets=others, jobs=others
    )
    assert isinstance(found, Cluster)
    for each in others:
        daemonset_facts(each, "x")
    plan_document(make_plan(found))


@given(st.text(max_size=80), st.text(max_size=80))
def test_names_are_of_one_version_only(one: str, other: str) -> None:
    """For any two texts: names and labels within DNS limits, equal only for equal texts."""
    for make in (lambda text: object_name("nvdriver-build", text), label_value):
        assert (make(one) == make(other)) == (one == other)
        assert len(make(one)) <= 63
    name = object_name("nvdriver-build-prebuild", one, "0123abcd")
    assert len(name) <= 57 and all(char.isascii() and (char.isalnum() or char == "-") for char in name)
    assert name == name.lower()


@pytest.mark.parametrize(
    "version", ["1." * 40, "7" * 64, f"{'7' * 60}.1-0", "x-1", "1.2+3", "-1", "1-", "A_b"]
)
def test_versions_that_are_no_names(version: str) -> None:
    """What is too long, or has other signs, becomes a digest, within the limits."""
    assert len(label_value(version)) <= 63 and re.fullmatch(
        r"[A-Za-z0-9]([-\w.]*[A-Za-z0-9])?", label_value(version)
    )
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,55}[a-z0-9])", object_name("nvdriver-build", version))


@pytest.mark.parametrize("version", [V1, V2, "9.6.20260616-0", "416.9.202411211032-0"])
def test_names_can_be_read(version: str) -> None:
    """A name shows the version that it is for."""
    assert is_version(version)
    assert object_name("nvdriver-build", version) == f"nvdriver-build-{version.replace('.', '-')}"
    assert label_value(version) == version


@pytest.mark.parametrize(
    ("version", "rhel"),
    [
        ("416.94.202408260940-0", 9),
        ("9.6.20260616-0", 9),
        ("10.2.20260616-0", 10),
        ("416.9.202411211032-0", 9),
        ("421.10.202511211032-0", 10),
        ("421.102.202511211032-0", 10),
        ("410.84.202207140725-0", 8),
        ("39.20240210.3.0", 39),
        ("416", None),
        ("x.y", None),
    ],
)
def test_the_rhel_of_a_version(version: str, rhel: Optional[int]) -> None:
    """By its first number, or after OpenShift's own release."""
    assert rhel_of(version) == rhel


@pytest.mark.parametrize(
    ("labels", "name", "seen"),
    [
        ({"app.kubernetes.io/component": "nvidia-driver"}, "x", True),
        ({"openshift.driver-toolkit": "true"}, "x", True),
        ({"openshift.driver-toolkit": "false"}, "x", False),
        ({}, "nvidia-driver-daemonset-416.94", True),
        ({}, "nvidia-dcgm", False),
    ],
)
def test_drivers_of_others(labels: Dict[str, str], name: str, seen: bool) -> None:
    """By the component, by the operator's own label, by the operator's name."""
    document = {"metadata": {"name": name, "namespace": "theirs", "labels": labels}}
    assert (daemonset_facts(document, "nvdriver-build") is not None) is seen

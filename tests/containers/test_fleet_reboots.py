"""An upgrade of three nodes by the shipped `fleet` commands, with real builds, Jobs, pods and a registry."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Callable, Iterator, Optional, Tuple

import pytest

pytest.importorskip("lightkube", reason="the extra 'fleet' is for Python 3.11 and later")

from fleet_site import Publishing, Site, table
from keys import make_identity
from kit_release import KitRelease, kit_release
from oci_registry import oci_registry
from podman_rig import Podman
from sample_driver.user_space import RunFile
from upgrade_world import DAEMONSETS, SPACE
from vm.kit import KitKernel

yaml = pytest.importorskip("yaml")
pytestmark = pytest.mark.xdist_group("pods")
MakeSite = Callable[..., Site]


@pytest.fixture
def releases(
    toolkit: Callable[[str], Path], kernel_a: KitKernel, kernel_b: KitKernel, tmp_path: Path
) -> Tuple[KitRelease, ...]:
    """That of kernel A, and that of kernel B."""
    return (
        kit_release(1, kernel_a, toolkit("fits"), tmp_path / "kernels"),
        kit_release(2, kernel_b, toolkit("wrong-kernel"), tmp_path / "kernels"),
    )


@pytest.fixture
def make_site(
    podman: Podman,
    sample_image: str,
    run_file: RunFile,
    sample_store: Path,
    releases: Tuple[KitRelease, ...],
    tmp_path: Path,
) -> Iterator[MakeSite]:
    """Makes a cluster of three nodes, whose stores have the set of their first kernel."""
    with contextlib.ExitStack() as sites:

        def make(publishing: Optional[Publishing] = None) -> Site:
            first = (podman, sample_image, run_file.version, releases, sample_store)
            return sites.enter_context(Site(*first, tmp_path, publishing))

        yield make
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert str(tmp_path) not in podman("ps", "-a", "--no-trunc", "--format", "{{.Mounts}}").stdout


def begin(site: Site) -> None:
    """Every node gets the driver of its kernel."""
    site.watch()
    site.until(lambda: site.up(site.old))


def agree(site: Site) -> None:
    """What `plan` says of the API and of files is the same, and `render` writes what is there."""
    files = site.files()
    planned, by_files = (
        json.loads(site.configured("plan", "--json", *words, api=not words)) for words in ([], files)
    )
    assert planned == by_files
    rendered = yaml.safe_load_all(site.configured("render", *files, api=False))
    pods = {
        each["metadata"]["name"]: each["spec"]["template"]["spec"]
        for each in rendered
        if each["kind"] == "DaemonSet"
    }
    with site.server.lock:
        there = site.server.store.list(DAEMONSETS, SPACE)
    assert pods == {each["metadata"]["name"]: each["spec"]["template"]["spec"] for each in there}


def finish(site: Site) -> None:
    """After the last node the old DaemonSet goes; the controller ends by a signal."""
    site.until(lambda: site.rig.versions() == [site.new.version])
    assert "3 of 3" in site.fleet("status")
    assert site.end_watch() == 128 + 15
    assert "Traceback" not in site.told


def test_an_upgrade_that_was_prebuilt(make_site: MakeSite, tmp_path: Path) -> None:
    """Built and published before the first reboot: each node takes it from there and compiles nothing.

    The first round is that of `apply`, which has nothing to add then.
    """
    with oci_registry(tmp_path / "registry") as registry:
        site = make_site(Publishing(registry, make_identity(tmp_path / "keys", "Build key")))
        assert "made" in site.configured("apply")
        assert site.configured("plan", "--diff") == ""
        begin(site)
        site.offer(site.new)
        site.until(lambda: site.world.job_seconds)
        site.until(lambda: site.states.get(site.new.version) == "prebuilt")
        agree(site)
        for name in site.names:
            site.reboot(name)
        finish(site)
    print(table({"prebuilt": site.ways}))
    print("the Job took", site.world.job_seconds)
    assert [(way.origin, way.compiled) for way in site.ways] == [("registry", False)] * 3
    assert {way.kernel for way in site.ways} == {site.new.kernel("x86_64")}


def test_an_upgrade_without_prebuild(make_site: MakeSite) -> None:
    """Without a registry and a key no Job is made, and each node builds after its reboot: all at once."""
    site = make_site()
    begin(site)
    site.offer(site.new)
    site.until(lambda: site.states.get(site.new.version) == "can build")
    site.reboot(*site.names)
    finish(site)
    print(table({"not prebuilt": site.ways}))
    assert [(way.origin, way.compiled) for way in site.ways] == [("built", True)] * 3
    assert site.world.job_seconds == []

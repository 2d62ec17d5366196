"""A prebuild Job as `fleet` renders it: its containers in turn, with the rights that it asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

from keys import make_identity
from podman_rig import Podman
from prebuilt_taker import take
from rendered import job_words, lay_out
from vm.kit import KitKernel

from nvdriver_build.fleet.manifests import Driver, prebuild_job
from nvdriver_build.fleet.plan import PrebuildWanted


def test_prebuild_job(
    podman: Podman,
    toolkit: Callable[[str], Path],
    sample_image: str,
    kernel_a: KitKernel,
    tmp_path: Path,
) -> None:
    """Without network, root and capabilities: built in the toolkit, signed and published by ours."""
    keys = make_identity(tmp_path / "made", "Build key")
    driver = Driver(
        sample_image,
        registry="registry.example.com/sets",
        sign_secret="signing",
        trust=keys.file.read_text(),
    )
    wanted = PrebuildWanted("job", "key", "416.94.202408260940-0", "toolkit", "x86_64", kernel_a.release)
    pod = prebuild_job(wanted, driver)["spec"]["template"]["spec"]
    contents = {
        ("secret", "signing"): {"tls.key": keys.key.read_bytes(), "tls.crt": keys.file.read_bytes()},
        ("configMap", "nvdriver-build-certificates"): {"trust.pem": keys.file.read_bytes()},
    }
    volumes = lay_out(pod, tmp_path, contents)
    (tmp_path / "shared").mkdir(mode=0o777)
    (tmp_path / "shared").chmod(0o2777)
    for container in [*pod["initContainers"], *pod["containers"]]:
        root = toolkit("fits") if container["image"] == "toolkit" else None
        words = job_words(container, volumes, root, NVDRIVER_REGISTRY="/shared")
        podman.run("-v", f"{tmp_path}/shared:/shared", *words)
        if container["name"] == "build":
            assert "signing" not in [each["name"] for each in container["volumeMounts"]]
    taken = take(tmp_path, volumes["work"] / "source", kernel_a, keys.file)
    assert taken["from"] == "registry"

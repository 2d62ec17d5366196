"""What a registry has, as the fleet's plan asks for it: signed sets of the kernel's name, in bounded time."""

from __future__ import annotations

import base64
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import pytest
from attrs import evolve
from cli_runs import cli
from cluster_objects import K1, K2, V1, V2, imagestream, imagestreamtag, node
from keys import Identity, make_identity
from module_sets import recipe
from oci_registry import OciRegistry
from oci_sets import write_signed
from structlog.testing import capture_logs

from nvdriver_build.cli.fleet_sets import AGE, KEPT, NotAsked, RegistrySets, registry_sets
from nvdriver_build.errors import NvdriverError, Stopped, StoreError
from nvdriver_build.fleet.controller.api import Missing
from nvdriver_build.fleet.manifests import Driver
from nvdriver_build.registry import hints
from nvdriver_build.registry.artifacts import NOTHING, parse_artifact
from nvdriver_build.registry.session import PUSH
from nvdriver_build.sets import Recipe
from nvdriver_build.signing import Trust, read_certificate

DRIVER_VERSION = "999.10.01"


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return make_identity(tmp_path_factory.mktemp("keys"), "builder")


class Secrets:
    """An API that has one Secret: the login."""

    def __init__(self, login: Optional[bytes]) -> None:
        self.login = login

    def get(self, kind: Any, name: str, namespace: str) -> Dict[str, Any]:
        if self.login is None:
            raise Missing("not there", status=404)
        return {"data": {".dockerconfigjson": base64.b64encode(self.login).decode()}}


def driver_of(server: OciRegistry, repository: str, identity: Identity, **more: Any) -> Driver:
    given: Dict[str, Any] = {
        "registry": f"{server.host}/{repository}",
        "registry_ca": server.authority.read_text(),
        "registry_auth_secret": "login",
        "trust": identity.file.read_text(),
        "env": {"DRIVER_VERSION": DRIVER_VERSION},
        **more,
    }
    return Driver("quay.io/example/driver@sha256:0", **given)


def asked(driver: Driver, server: OciRegistry) -> RegistrySets:
    api: Any = Secrets(server.auth.read_bytes())
    found = registry_sets(driver, api, patience=20)
    assert isinstance(found, RegistrySets)
    return found


def of(kernel: str = K1, **more: Any) -> Recipe:
    return recipe(kernel_release=kernel, **more)


def test_a_signed_set_is_found_by_the_name_of_its_kernel(
    server: OciRegistry, identity: Identity, tmp_path: Path
) -> None:
    """By driver version, release and architecture, with the login of the Secret; other kernels have none."""
    server.open("fleet/found").push(write_signed(tmp_path / "set", of(), identity))
    sets = asked(driver_of(server, "fleet/found", identity), server)
    assert sets.has(K1, "x86_64") is True
    assert sets.has(K2, "x86_64") is False and sets.has(K1, "arm64") is False
    assert sets.reasons() == ()
    other = asked(driver_of(server, "fleet/found", identity, env={"DRIVER_VERSION": "1.2.3"}), server)
    assert other.has(K1, "x86_64") is False


@pytest.mark.parametrize(
    ("name", "made", "more"),
    [
        ("peermem", {"modules": ("nvidia-peermem",)}, {}),
        ("unsigned", {}, {"sign_secret": "signing"}),
        ("kind", {}, {"env": {"DRIVER_VERSION": DRIVER_VERSION, "KERNEL_MODULE_TYPE": "proprietary"}}),
    ],
)
def test_sets_that_serve_no_node(
    server: OciRegistry,
    identity: Identity,
    tmp_path: Path,
    name: str,
    made: Dict[str, Any],
    more: Dict[str, Any],
) -> None:
    """nvidia-peermem alone is no driver, and another kind is not what nodes look for."""
    server.open(f"fleet/{name}").push(write_signed(tmp_path / "set", of(**made), identity))
    assert asked(driver_of(server, f"fleet/{name}", identity, **more), server).has(K1, "x86_64") is False


def test_only_what_is_signed_counts(
    server: OciRegistry, identity: Identity, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A manifest that somebody else has signed, or nobody, is as if it was not there; a good one beside it
    counts.
    """
    registry = server.open("fleet/signed")
    stranger = make_identity(tmp_path_factory.mktemp("keys"), "stranger")
    registry.push(write_signed(tmp_path / "theirs", of(source_digest="6" * 64), stranger))
    registry.push(write_signed(tmp_path / "nobody's", of(source_digest="7" * 64), None))
    driver = driver_of(server, "fleet/signed", identity)
    assert asked(driver, server).has(K1, "x86_64") is False
    registry.push(write_signed(tmp_path / "ours", of(), identity))
    assert asked(driver, server).has(K1, "x86_64") is True


def test_a_damaged_set_hides_no_other_one(server: OciRegistry, identity: Identity, tmp_path: Path) -> None:
    """What cannot be a set does not count, and what is beside it does."""
    registry = server.open("fleet/damaged")
    driver = driver_of(server, "fleet/damaged", identity)
    damaged = write_signed(tmp_path / "damaged", of(source_digest="8" * 64), identity)
    registry.push(damaged)
    tag, content = hints.kernel_tag(DRIVER_VERSION, K1, "x86_64"), registry.content
    content.publish(f"set-{damaged.key}", content.document(tag) or b"", NOTHING, known=True)
    assert asked(driver, server).has(K1, "x86_64") is False
    good = write_signed(tmp_path / "good", of(), identity)
    registry.push(good)
    hints.add(content, [tag], damaged.key)
    notes = hints.read(content, tag)
    assert set(notes) == {damaged.key, good.key}
    sets = asked(driver, server)
    assert sets.has(K1, "x86_64") is True and sets.reasons() == ()


def test_a_set_that_lacks_a_module_does_not_count(
    server: OciRegistry, identity: Identity, tmp_path: Path
) -> None:
    """Its manifest is there, and signed, and no node could take it: told, until a push mends it."""
    registry = server.open("fleet/lacking")
    made = write_signed(tmp_path / "made", of(source_digest="5" * 64), identity)
    registry.push(made)
    document = registry.content.document(f"set-{made.key}")
    assert document is not None
    lost = parse_artifact(document).modules["nvidia.ko"]
    registry.session.ask("DELETE", f"blobs/{lost.digest}", scope=PUSH, wanted=(202,))
    driver = driver_of(server, "fleet/lacking", identity)
    with capture_logs() as logs:
        assert asked(driver, server).has(K1, "x86_64") is False
    assert [log["reason"].endswith("without nvidia.ko") for log in logs] == [True]
    registry.push(made)
    assert asked(driver, server).has(K1, "x86_64") is True


def test_modules_of_another_key(server: OciRegistry, identity: Identity, tmp_path: Path) -> None:
    """Nodes take modules that a certificate of `trust` has signed, or unsigned ones."""
    strange = of(certificate=read_certificate(identity.file).fingerprint[:-1] + "x")
    assert strange.certificate != read_certificate(identity.file).fingerprint
    driver = driver_of(server, "fleet/x", identity)
    sets = asked(driver, server)
    looking: Any = sets.look
    trust = Trust((read_certificate(identity.file),))
    assert not looking._serves(strange, K1, "x86_64", trust)
    own = evolve(strange, certificate=trust.certificates[0].fingerprint)
    assert looking._serves(own, K1, "x86_64", trust)


@pytest.mark.parametrize("what", ["down", "login", "ca", "trust"])
def test_a_registry_in_trouble(server: OciRegistry, identity: Identity, what: str) -> None:
    """Down, without a login, of a CA that is not known, a `trust` that is none: not known, the reason once,
    and told the same each time.
    """
    changes: Dict[str, Dict[str, Any]] = {
        "down": {"registry": "http://127.0.0.1:9/fleet/x"},
        "login": {"registry_auth_secret": None},
        "ca": {"registry_ca": None},
        "trust": {"trust": "-----BEGIN CERTIFICATE-----\n"},
    }
    driver = driver_of(server, "fleet/x", identity, **changes[what])
    told = []
    for _ in range(2):
        sets = asked(driver, server)
        assert sets.has(K1, "x86_64") is None and sets.has(K2, "x86_64") is None
        told.append(sets.reasons())
    assert told[0] == told[1] and [each.code for each in told[0]] == ["RegistryUnknown"]
    assert "/tmp" not in told[0][0].message and told[0][0].hint


def test_what_cannot_be_asked(server: OciRegistry, identity: Identity) -> None:
    """No registry: nothing is said. No trust, or no driver version: why it is not asked."""
    assert registry_sets(None, None) is None and registry_sets(Driver("x"), None) is None
    for more, word in (({"trust": None}, "trust"), ({"env": {}}, "driver version")):
        sets = registry_sets(driver_of(server, "fleet/x", identity, **more), None)
        assert isinstance(sets, NotAsked) and sets.has(K1, "x86_64") is None
        assert word in sets.reasons()[0].message


class Looks:
    """A look whose answers are given, that may take as long as it is told."""

    def __init__(self) -> None:
        self.there: Dict[str, bool] = {}
        self.made: List[Tuple[str, str]] = []
        self.error: Optional[Exception] = None
        self.go = threading.Event()
        self.go.set()

    def __call__(self, kernel: str, arch: str) -> bool:
        self.made.append((kernel, arch))
        assert self.go.wait(30)
        if self.error is not None:
            raise self.error
        return self.there.get(kernel, False)


def settled(sets: RegistrySets) -> None:
    until = time.monotonic() + 30
    while sets._running:
        assert time.monotonic() < until
        time.sleep(0.005)


def test_once_a_minute_and_then_once_an_hour() -> None:
    """A kernel is asked for at most once a minute, and once an hour after its set was found: it is there
    until the registry says that it is gone. `changed` comes with each new answer that nobody has waited for.
    """
    looks, now, changes = Looks(), [0.0], []
    sets = RegistrySets(looks, clock=lambda: now[0], changed=lambda: changes.append(now[0]))
    assert sets.has("a", "x") is False
    now[0] = AGE - 1
    assert sets.has("a", "x") is False and len(looks.made) == 1
    now[0], looks.there = AGE, {"a": True}
    assert sets.has("a", "x") is False  # as it was: nobody waits for a second look
    settled(sets)
    assert sets.has("a", "x") is True and len(looks.made) == 2
    now[0] = AGE + KEPT - 1
    assert sets.has("a", "x") is True and len(looks.made) == 2
    assert changes == [AGE]
    for hours, there in ((1, True), (2, False)):
        now[0], looks.error = AGE + hours * KEPT, None if hours == 2 else StoreError("no answer")
        looks.there = {}
        assert sets.has("a", "x") is True
        settled(sets)
        assert sets.has("a", "x") is there and bool(sets.reasons()) is there
    assert len(looks.made) == 4


def test_what_was_asked_before_it_was_built() -> None:
    """Once a Job has built it, an answer from before does not count: it is asked for again at once."""
    looks, now = Looks(), [0.0]
    sets = RegistrySets(looks, clock=lambda: now[0])
    assert sets.has("a", "x") is False
    looks.go.clear()
    assert [sets.has("a", "x", built=True) for _ in range(3)] == [None] * 3
    looks.go.set()
    settled(sets)
    assert sets.has("a", "x", built=True) is False and len(looks.made) == 2
    now[0], looks.there = AGE, {"a": True}
    sets.has("a", "x", built=True)
    settled(sets)
    assert sets.has("a", "x", built=True) is True and len(looks.made) == 3


def test_a_registry_that_hangs() -> None:
    """A round waits for the first answer, once, and for no other one meanwhile; what comes late counts."""
    looks = Looks()
    looks.there = {"a": True, "b": True}
    looks.go.clear()
    sets = RegistrySets(looks, patience=0.3)
    began = time.monotonic()
    assert [sets.has(each, "x") for each in "abababab"] == [None] * 8
    assert time.monotonic() - began < 3
    looks.go.set()
    settled(sets)
    assert [sets.has(each, "x") for each in "ab"] == [True, True] and len(looks.made) == 2


def test_errors_and_bugs_of_a_look() -> None:
    """Both are reasons; the next minute's look takes them away."""
    looks, now = Looks(), [0.0]
    sets = RegistrySets(looks, clock=lambda: now[0])
    errors: List[NvdriverError] = [StoreError("no answer", hint="is it up?")]
    for number, error in enumerate((errors[0], ValueError("a bug")), 1):
        looks.error = error
        assert sets.has(f"kernel-{number}", "x") is None
    assert sorted(each.message.partition(": ")[2] for each in sets.reasons()) == [
        "ValueError: a bug",
        "no answer",
    ]
    looks.error, now[0] = None, AGE
    assert [sets.has(f"kernel-{number}", "x") for number in (1, 2)] == [None, None]
    settled(sets)
    assert sets.reasons() == () and sets.has("kernel-1", "x") is False


def test_a_signal_ends_the_waiting() -> None:
    """Whoever waits looks for signals."""

    def stop() -> None:
        raise Stopped(15)

    looks = Looks()
    looks.go.clear()
    with pytest.raises(Stopped):
        RegistrySets(looks, check=stop).has("a", "x")
    looks.go.set()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="fleet needs Python 3.11 or later")
def test_plan_from_files(server: OciRegistry, identity: Identity, tmp_path: Path) -> None:
    """`--ask-registry` makes `fleet plan` ask from files, too: what is there is 'set available' and
    'prebuilt', without any toolkit; without it nobody is asked.
    """
    registry = server.open("fleet/files")
    for kernel in (K1, K2):
        registry.push(write_signed(tmp_path / kernel, of(kernel), identity))
    driver = driver_of(server, "fleet/files", identity)
    settings = {
        "image": driver.image,
        "registry": driver.registry,
        "registry_ca": driver.registry_ca,
        "trust": driver.trust,
        "env": dict(driver.env),
    }
    files = {
        "settings": settings,
        "nodes": {"kind": "List", "items": [node("a")]},
        "imagestream": {"kind": "List", "items": [imagestream(V1, V2), imagestreamtag(V2)]},
    }
    words = []
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
        words += [f"--{name}", str(tmp_path / name)]
    states = []
    for more in ([], ["--ask-registry"]):
        done = cli(
            tmp_path, "fleet", "plan", "--json", *words, *more, NVDRIVER_REGISTRY_AUTH=str(server.auth)
        )
        assert done.returncode == 0, done.stderr
        states.append([each["state"] for each in json.loads(done.stdout)["groups"]])
    assert states == [["can build", "can build"], ["set available", "prebuilt"]]

"""Sets in a real registry, Debian's docker-registry with TLS and a login: pushed once, taken byte by byte."""

from __future__ import annotations

import shutil
import sys
import threading
from pathlib import Path
from typing import Any, List

import pytest
from attrs import evolve
from cli_runs import cli, document
from crashes import killed_at_each_step
from facts import kernel
from keys import Identity, make_identity
from module_sets import recipe
from oci_registry import PASSWORD, OciRegistry, oci_registry, write_auth
from oci_sets import other, write_signed

from nvdriver_build.commands import SystemCommands
from nvdriver_build.errors import SigningError, StoreError, UsageError
from nvdriver_build.obtain import Outside
from nvdriver_build.registry import Registry, hints, open_registry
from nvdriver_build.registry.artifacts import MANIFEST_TYPE, NOTHING, note
from nvdriver_build.registry.transport import Answer, Transport
from nvdriver_build.sets import SIGNATURE, ModuleSet, open_set, write_manifest
from nvdriver_build.signing import Trust
from nvdriver_build.store import Store


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return make_identity(tmp_path_factory.mktemp("keys"), "builder")


@pytest.fixture
def registry(server: OciRegistry, request: pytest.FixtureRequest) -> Registry:
    """A repository of its own for each test."""
    return server.open(repository(request))


def repository(request: pytest.FixtureRequest) -> str:
    return "".join(char if char.isalnum() else "-" for char in request.node.name.lower()).strip("-")


def requests_of(server: OciRegistry, *methods: str) -> List[str]:
    """The requests of some methods that the registry has logged."""
    lines = [line.split('"')[1] for line in server.log.splitlines() if 'HTTP/1.1" ' in line]
    return [line for line in lines if line.split()[0] in methods]


def same(one: ModuleSet, folder: Path) -> bool:
    return all((folder / path.name).read_bytes() == path.read_bytes() for path in one.files)


def test_what_is_pushed_is_taken_byte_by_byte(registry: Registry, tmp_path: Path) -> None:
    """Manifest and signature come first; the modules are those that were pushed."""
    made = write_signed(tmp_path / "made", recipe(), None, size=300_000)
    assert registry.offer(made.key) is None
    assert registry.push(made)
    offer = registry.offer(made.key)
    assert offer is not None
    assert offer.manifest == made.manifest_bytes
    assert offer.signature == made.signature
    offer.fetch(tmp_path / "taken")
    assert open_set(tmp_path / "taken").manifest == made.manifest
    assert same(made, tmp_path / "taken")
    assert {path.name for path in (tmp_path / "taken").iterdir()} == {path.name for path in made.files}


def test_a_second_push_sends_nothing(registry: Registry, server: OciRegistry, tmp_path: Path) -> None:
    """A set that is there is left alone; content that another set brought is not sent again."""
    made = write_signed(tmp_path / "made", recipe(), None)
    assert registry.push(made)
    before = len(requests_of(server, "POST", "PUT", "PATCH"))
    assert not registry.push(made)
    assert len(requests_of(server, "POST", "PUT", "PATCH")) == before
    (made.folder / SIGNATURE).write_bytes(b"another one of nobody")
    assert registry.push(made)
    assert len(requests_of(server, "POST", "PUT")) == before + 3  # the signature (POST, PUT), the tag


def test_two_at_once_do_no_harm(server: OciRegistry, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Many who push the same set at the same time leave one whole set."""
    made = write_signed(tmp_path / "made", recipe(), None, size=100_000)
    failed: List[BaseException] = []

    def push() -> None:
        try:
            server.open(repository(request)).push(made)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=push) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    offer = server.open(repository(request)).offer(made.key)
    assert offer is not None
    offer.fetch(tmp_path / "taken")
    assert same(made, tmp_path / "taken")


def test_what_somebody_else_put_there_is_replaced(registry: Registry, tmp_path: Path) -> None:
    """A note, or a set with another manifest, under the key of a set does not keep the set away."""
    made = write_signed(tmp_path / "made", recipe(), None)
    hints.add(registry.content, [f"set-{made.key}"], "ab" * 32)
    with pytest.raises(StoreError, match=r"cannot be believed: set-.* is no set"):
        registry.offer(made.key)
    assert registry.push(made)
    offer = registry.offer(made.key)
    assert offer is not None
    assert offer.signature == made.signature


def test_a_set_without_signature_is_not_pushed(registry: Registry, tmp_path: Path) -> None:
    """Nobody would take it."""
    made = write_signed(tmp_path / "made", recipe(), None)
    (made.folder / SIGNATURE).unlink()
    with pytest.raises(SigningError, match=SIGNATURE):
        registry.push(made)


def test_a_damaged_set_is_not_pushed(registry: Registry, tmp_path: Path) -> None:
    """A module that is not as the manifest says goes nowhere, and no tag is made."""
    made = write_signed(tmp_path / "made", recipe(), None)
    made.paths[0].write_bytes(b"another")
    with pytest.raises(StoreError, match="is not as its manifest says"):
        registry.push(made)
    assert registry.offer(made.key) is None


def test_candidates_without_listing(registry: Registry, server: OciRegistry, tmp_path: Path) -> None:
    """A kernel finds the sets of others that might fit it by what it knows of itself, the newest first."""
    wanted, target = recipe(), kernel(rest="SMP preempt mod_unload modversions ")
    config = {"symvers_sha256": "8" * 64, "config_sha256": "7" * 64}
    keys = []
    for number in range(3):
        made = write_signed(
            tmp_path / f"{number}", recipe(kernel_release=f"6.1.0-{number + 2}", **config), None
        )
        registry.push(described(made, target.config_digest))
        keys.append(made.key)
    foreign = write_signed(tmp_path / "foreign", recipe(driver_version="1"), None)
    registry.push(described(foreign, target.config_digest))
    changed = write_signed(tmp_path / "changed", other(wanted, "6.1.0-99"), None, layout=1)
    registry.push(described(changed, target.config_digest))
    assert list(registry.candidates(wanted, target)) == keys[::-1]
    assert not [line for line in requests_of(server, "GET") if "tags/list" in line or "_catalog" in line]


def test_what_is_no_note_is_written_over(registry: Registry, tmp_path: Path) -> None:
    """Rubbish in the place of what fits ends nobody's search for good: the next push mends it."""
    wanted, target = recipe(), kernel(rest="SMP preempt mod_unload modversions ")
    tag = hints.wanted_tag(wanted, target)
    assert tag is not None
    registry.content.publish(tag, note("application/vnd.other", {}), NOTHING)
    with pytest.raises(StoreError, match="no note of what fits"):
        list(registry.candidates(wanted, target))
    other_kernel = recipe(kernel_release="6.1.0-2", symvers_sha256="8" * 64, config_sha256="7" * 64)
    made = described(write_signed(tmp_path / "made", other_kernel, None), target.config_digest)
    registry.push(made)
    assert list(registry.candidates(wanted, target)) == [made.key]


def described(made: ModuleSet, config_digest: str) -> ModuleSet:
    """The set as if it had been built with that configuration."""
    manifest = evolve(made.manifest, config_digest=config_digest)
    write_manifest(made.folder, manifest)
    return ModuleSet(made.folder, manifest)


def test_notes_that_many_write_at_once(server: OciRegistry, request: pytest.FixtureRequest) -> None:
    """Keys that are added to one note at the same time are all there in the end."""
    keys = [f"{number:064x}" for number in range(6)]

    def add(key: str) -> None:
        hints.add(server.open(repository(request)).content, ["fit-x"], key)

    threads = [threading.Thread(target=add, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    there = hints.read(server.open(repository(request)).content, "fit-x")
    assert len(set(there) & set(keys)) >= len(keys) - 1  # the last word is no promise: it is a hint


def test_a_note_is_capped(registry: Registry) -> None:
    """A note holds 64 keys, whoever wrote more, and nothing that is no key."""
    keys = ["../../etc", "x" * 64, *(f"{number:064x}" for number in range(100))]
    hints.add(registry.content, ["fit-x"], "0" * 64)
    registry.content.publish("fit-x", note(hints._FIT, {hints._KEYS: ",".join(keys)}), NOTHING)
    found = hints.read(registry.content, "fit-x")
    assert len(found) == 62
    hints.add(registry.content, ["fit-x"], "f" * 64)
    assert hints.read(registry.content, "fit-x")[:2] == ("f" * 64, "0" * 64)


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        ({"authority": None}, "certificate verify failed", "NVDRIVER_REGISTRY_CA"),
        ({"auth": None}, "answers GET with 401", "NVDRIVER_REGISTRY_AUTH"),
    ],
)
def test_who_is_not_known_is_told(
    change: dict[str, None], message: str, hint: str, server: OciRegistry
) -> None:
    """A CA that is not trusted, a login that is not there: said, with the setting that mends it."""
    with pytest.raises(StoreError, match=message) as caught:
        server.open(**change).offer("0" * 64)  # type: ignore[arg-type]
    assert hint in (caught.value.hint or "")


def test_a_wrong_password_is_told_and_never_shown(server: OciRegistry, tmp_path: Path) -> None:
    """Neither message nor hint nor any value's text holds it."""
    auth = write_auth(tmp_path / "auth.json", server.host, password="hunter2")
    found = server.open(auth=auth)
    with pytest.raises(StoreError, match="401") as caught:
        found.offer("0" * 64)
    texts = [
        caught.value.message,
        caught.value.hint or "",
        repr(found),
        repr(found.session),
        repr(found.session.login),
    ]
    assert not [text for text in texts if "hunter2" in text or PASSWORD in text]


@pytest.mark.parametrize(
    "place",
    [
        "",
        "host",
        "host/",
        "/x",
        "http://example.com/x",
        "ftp://h/x",
        "h/UPPER",
        "h/a//b",
        "h/" + "a" * 300,
        "h:x/y",
        "h/../y",
    ],
)
def test_what_is_no_place(place: str) -> None:
    """A bad address is wrong usage, before anything is asked."""
    with pytest.raises(UsageError):
        open_registry(place, SystemCommands())


def test_oras_reads_what_we_push(server: OciRegistry, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Another client of another maker takes the set, and finds it to be as OCI wants it."""
    import jsonschema
    import oras.provider
    import oras.schemas

    made = write_signed(tmp_path / "made", recipe(), None, size=100_000)
    server.open(repository(request)).push(made)
    client = oras.provider.Registry(tls_verify=str(server.authority), auth_backend="basic")
    client.auth.set_basic_auth("node", PASSWORD)
    client.set_header("Authorization", client.auth.get_auth_header()["Authorization"])
    target = f"{server.host}/{repository(request)}:set-{made.key}"
    manifest = client.get_manifest(client.get_container(target))
    jsonschema.validate(manifest, oras.schemas.manifest)
    assert manifest["config"]["mediaType"] == MANIFEST_TYPE
    taken = [Path(path) for path in client.pull(target, outdir=str(tmp_path / "pulled"))]
    assert {path.name for path in taken} == {SIGNATURE, *(path.name for path in made.paths)}
    for path in made.paths:
        packed = tmp_path / "pulled" / path.name
        shutil.move(str(packed), f"{packed}.zst")
        assert SystemCommands().run(("zstd", "-dq", f"{packed}.zst"), timeout=60).ok
        assert packed.read_bytes() == path.read_bytes()


def test_the_commands(
    server: OciRegistry, request: pytest.FixtureRequest, identity: Identity, tmp_path: Path
) -> None:
    """`store push` and `store pull` between two stores; nothing is taken that nobody trusted has signed."""
    made = write_signed(tmp_path / "made", recipe(), identity)
    settings = {
        "NVDRIVER_REGISTRY": f"{server.host}/{repository(request)}",
        "NVDRIVER_REGISTRY_CA": str(server.authority),
        "NVDRIVER_REGISTRY_AUTH": str(server.auth),
    }
    trusting = {**settings, "NVDRIVER_TRUST": str(identity.file)}
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    pushed = cli(tmp_path / "one", "store", "push", made.folder, "--json", **settings)
    assert document(pushed)["sets"] == [{"key": made.key, "new": True}], pushed.stderr
    again = cli(tmp_path / "one", "store", "push", made.folder, **settings)
    assert "already in registry" in again.stdout
    nowhere = {**settings, "NVDRIVER_REGISTRY": "127.0.0.1:1/nobody"}
    refused = cli(tmp_path / "two", "store", "pull", made.key, **nowhere)
    assert refused.returncode == 14
    assert "is not asked" in refused.stderr and "NVDRIVER_TRUST" in refused.stderr
    assert not (tmp_path / "two/store/sets").exists()
    taken = cli(tmp_path / "two", "store", "pull", made.key, "--json", **trusting)
    assert taken.returncode == 0, taken.stderr
    assert same(made, Path(document(taken)["folder"]))
    assert open_set(Path(document(taken)["folder"])).foreign is not None
    absent = cli(tmp_path / "two", "store", "pull", "0" * 64, **trusting)
    assert (absent.returncode, "has no set" in absent.stderr) == (17, True)
    assert cli(tmp_path / "two", "store", "pull", made.key[:12], **trusting).returncode == 2
    assert cli(tmp_path / "two", "store", "push", made.key[:12], **settings).returncode == 0


@pytest.mark.once
def test_kills_of_a_push(server: OciRegistry, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Killed before any of its steps, a set is there whole or not at all; the next push brings it."""
    made = write_signed(tmp_path / "made", recipe(modules=("nvidia",)), None)
    turn = 0

    def client() -> Registry:
        return server.open(f"{repository(request)}/{turn}")

    def prepare() -> None:
        nonlocal turn
        turn += 1

    seen = set()

    def push() -> None:
        ask = Transport.request

        def counted(*args: Any, **options: Any) -> Answer:
            sys.audit("os.rename")  # a request is a step, too
            return ask(*args, **options)

        Transport.request = counted  # type: ignore[method-assign] # in the child alone
        client().push(made)

    for step in killed_at_each_step(prepare, push):
        offer = client().offer(made.key)
        seen.add(offer is not None)
        if step % 5 == 0 or offer is not None:
            client().push(made)
            offer = client().offer(made.key)
            assert offer is not None
            with_place = tmp_path / f"taken{step}"
            offer.fetch(with_place)
            assert same(made, with_place)
            shutil.rmtree(with_place)
    assert seen == {False, True}
    assert turn > 10


@pytest.mark.once
def test_kills_of_a_pull(
    server: OciRegistry, request: pytest.FixtureRequest, identity: Identity, tmp_path: Path
) -> None:
    """Killed before any of its steps, the store has the set whole or not; the next pull cleans up."""
    made = write_signed(tmp_path / "made", recipe(modules=("nvidia",)), identity)
    server.open(repository(request)).push(made)
    store = Store(tmp_path / "store", lambda found: None)

    def pull() -> ModuleSet:
        remote, trust = server.open(repository(request)), Trust((identity.certificate,))
        return Outside(remote, trust, SystemCommands()).pull(made.key, store)

    steps = 0
    for _ in killed_at_each_step(lambda: shutil.rmtree(store.root, ignore_errors=True), pull):
        steps += 1
        for entry in store.check():
            assert (entry.key, entry.problem) == (made.key, None)
        if steps % 10 == 0:
            pull()
            assert [entry.problem for entry in store.check()] == [None]
            assert list((store.root / "work").iterdir()) == []
    assert steps > 20
    assert same(made, store.root / "sets" / made.key)


def test_a_disk_that_is_full(
    server: OciRegistry, request: pytest.FixtureRequest, identity: Identity, small_disk: Path, tmp_path: Path
) -> None:
    """A pull that finds no space says so, and leaves nothing behind."""
    made = write_signed(tmp_path / "made", recipe(), identity, size=500_000)
    remote = server.open(repository(request))
    remote.push(made)
    store = Store(small_disk / "store", lambda found: None)
    with pytest.raises(StoreError, match="is full"):
        Outside(remote, Trust((identity.certificate,)), SystemCommands()).pull(made.key, store)
    assert list((store.root / "work").iterdir()) == []


def test_a_registry_that_is_gone(tmp_path: Path) -> None:
    """A registry that is down is told in seconds, with what may mend it."""
    with oci_registry(tmp_path / "registry") as gone:
        found = gone.open()
    with pytest.raises(StoreError, match=r"gives no answer that can be taken: .*refused") as caught:
        found.offer("0" * 64)
    assert "HTTPS_PROXY" in (caught.value.hint or "")

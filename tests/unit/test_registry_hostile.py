"""A registry that is slow, refuses or lies: bounded in time and bytes, told, and nothing of it is taken."""

from __future__ import annotations

import gc
import json
import resource
import socket
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest
from attrs import evolve
from hostile_registry import Handler, Hostile, hostile_registry
from module_sets import recipe
from oci_sets import write_signed

from nvdriver_build.commands import SystemCommands
from nvdriver_build.errors import Stopped, StoreError
from nvdriver_build.registry import Limits
from nvdriver_build.registry.artifacts import OCI_MANIFEST, Artifact, blob_of, digest_of
from nvdriver_build.registry.compression import compress, expand, most_compressed
from nvdriver_build.sets import ModuleSet

SECONDS = 8
"""After which a registry has certainly been given up: the limits of the tests, on a busy machine."""


@pytest.fixture
def made(tmp_path: Path) -> ModuleSet:
    return write_signed(tmp_path / "made", recipe(), None, size=200_000)


@pytest.fixture
def held(hostile: Hostile, made: ModuleSet, tmp_path: Path) -> Artifact:
    return hostile.hold(made, tmp_path / "held")


def take(hostile: Hostile, made: ModuleSet, place: Path) -> None:
    offer = hostile.open().offer(made.key)
    assert offer is not None
    offer.fetch(place)


def refused(hostile: Hostile, made: ModuleSet, place: Path) -> str:
    """The message with which a set is refused; in time, and with a hint."""
    started = time.monotonic()
    with pytest.raises(StoreError) as caught:
        take(hostile, made, place)
    assert time.monotonic() - started < SECONDS
    assert caught.value.hint
    assert len(caught.value.message) < 1000
    return caught.value.message


def test_an_honest_one_serves(hostile: Hostile, held: Artifact, made: ModuleSet, tmp_path: Path) -> None:
    """The server of these tests is one from which a set can be taken."""
    take(hostile, made, tmp_path / "taken")
    assert [path.read_bytes() for path in made.files] == [
        (tmp_path / "taken" / path.name).read_bytes() for path in made.files
    ]


def silent(handler: Handler) -> bool:
    time.sleep(SECONDS)
    return True


def slow_head(handler: Handler) -> bool:
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n" + b"X-Name: value\r\n" * 100:
        handler.wfile.write(bytes((byte,)))
        time.sleep(0.05)
    return True


def head_without_end(handler: Handler) -> bool:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        handler.wfile.write(b"X-Name: " + b"a" * 1000 + b"\r\n")


def line_without_end(handler: Handler) -> bool:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Name: ")
    while True:
        handler.wfile.write(b"a" * 65536)


def slow_body(handler: Handler) -> bool:
    handler.send_response(200)
    handler.send_header("Content-Type", OCI_MANIFEST)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(1000):
        handler.wfile.write(b"a")
        time.sleep(0.05)
    return True


def body_without_end(handler: Handler) -> bool:
    handler.send_response(200)
    handler.send_header("Content-Type", OCI_MANIFEST)
    handler.end_headers()
    while True:
        handler.wfile.write(b"a" * 65536)


def chunks_without_end(handler: Handler) -> bool:
    handler.send_response(200)
    handler.send_header("Content-Type", OCI_MANIFEST)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    while True:
        handler.wfile.write(b"1000\r\n" + b"a" * 4096 + b"\r\n")


def cut_short(handler: Handler) -> bool:
    handler.send_response(200)
    handler.send_header("Content-Type", OCI_MANIFEST)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"a" * 10)
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)
    return True


def no_http(handler: Handler) -> bool:
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n" * 3)
    handler.close_connection = True
    return True


def hundreds(handler: Handler) -> bool:
    handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 100000)
    return True


def zipped(handler: Handler) -> bool:
    import gzip

    handler.reply(200, gzip.compress(b"a" * 50_000_000), OCI_MANIFEST, Content_Encoding="gzip")
    return True


def around(handler: Handler) -> bool:
    handler.reply(302, b"", Location=handler.path)
    return True


ANSWERS = [
    silent, slow_head, head_without_end, line_without_end, slow_body, body_without_end, chunks_without_end,
    cut_short, no_http, hundreds, zipped, around,
]  # fmt: skip


@pytest.mark.parametrize("part", ["manifests/", "blobs/"])
@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer.__name__)
def test_an_answer_without_end_or_sense(
    answer: Callable[[Handler], bool],
    part: str,
    hostile: Hostile,
    held: Artifact,
    made: ModuleSet,
    tmp_path: Path,
) -> None:
    """Whatever a registry sends in place of a document or a module, slowly or without an end: given up."""
    hostile.hook = lambda handler: part in handler.path and answer(handler)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(hostile, made, tmp_path / "taken")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


@pytest.mark.parametrize("status", [400, 401, 403, 405, 408, 418, 429, 500, 502, 503, 599, 204, 206, 304])
def test_a_refusal_is_told(status: int, hostile: Hostile, made: ModuleSet, tmp_path: Path) -> None:
    """The status and the start of what is said stand in the message; it cannot fill the log."""

    def answer(handler: Handler) -> bool:
        data = b"no \x1b[2J because" + b"a" * 100_000 if status not in (204, 304) else b""
        handler.reply(status, data)
        return True

    hostile.hook = answer
    assert str(status) in refused(hostile, made, tmp_path / "taken")


def test_what_is_busy_is_asked_again(
    hostile: Hostile, held: Artifact, made: ModuleSet, tmp_path: Path
) -> None:
    """After 429 and 503 comes another try, no later than Retry-After may say within reason."""
    asked: Dict[str, int] = {}

    def answer(handler: Handler) -> bool:
        asked[handler.path] = asked.get(handler.path, 0) + 1
        if asked[handler.path] > 1:
            return False
        handler.reply(429 if "manifests" in handler.path else 503, b"", Retry_After="0")
        return True

    hostile.hook = answer
    take(hostile, made, tmp_path / "taken")
    assert set(asked.values()) == {2}


def test_an_endless_retry_after(hostile: Hostile, made: ModuleSet, tmp_path: Path) -> None:
    """A Retry-After of a year, or of no number, does not make anybody wait."""
    for value in ("31536000", "9" * 5000, "-1", "tomorrow"):
        hostile.hook = lambda handler, value=value: handler.reply(429, b"", Retry_After=value) is None
        refused(hostile, made, tmp_path / "taken")


def test_a_signal_is_heard_meanwhile(hostile: Hostile, made: ModuleSet) -> None:
    """What `check` raises ends a request that the registry does not answer, within a second."""
    hostile.hook = silent
    stop = threading.Event()

    def check() -> None:
        if stop.is_set():
            raise Stopped(15)

    from nvdriver_build.registry import open_registry

    found = open_registry(
        f"http://{hostile.host}/r", SystemCommands(check=check), limits=Limits(silence=60, answer=60)
    )
    threading.Timer(0.3, stop.set).start()
    started = time.monotonic()
    with pytest.raises(Stopped):
        found.offer(made.key)
    assert time.monotonic() - started < 2


def damaged(data: bytes) -> bytes:
    return data[:-1] + bytes((data[-1] ^ 1,))


@pytest.mark.parametrize("part", ["config", "signature", "module"])
def test_wrong_bytes(part: str, hostile: Hostile, held: Artifact, made: ModuleSet, tmp_path: Path) -> None:
    """A changed, a shorter and a longer blob are refused by their digests."""
    assert held.signature is not None
    blob = {"config": held.config, "signature": held.signature, "module": held.modules["nvidia.ko"]}[part]
    good = hostile.blobs[blob.digest]
    for number, bad in enumerate((damaged(good), good[:-1], good + b"x", b"")):
        hostile.blobs[blob.digest] = bad
        message = refused(hostile, made, tmp_path / f"taken{number}")
        assert "has the digest" in message or "more than" in message


def test_a_wrong_digest_of_a_document(
    hostile: Hostile, held: Artifact, made: ModuleSet, tmp_path: Path
) -> None:
    """What the header calls the document has to be its digest."""

    def answer(handler: Handler) -> bool:
        if "manifests" not in handler.path:
            return False
        handler.reply(200, held.document(), OCI_MANIFEST, Docker_Content_Digest="sha256:" + "0" * 64)
        return True

    hostile.hook = answer
    assert "has the digest" in refused(hostile, made, tmp_path / "taken")


def changed(held: Artifact, change: Callable[[Any], object]) -> bytes:
    document = json.loads(held.document())
    change(document)
    return json.dumps(document).encode()


CHANGES: List[Callable[[Any], object]] = [
    lambda d: d.update(artifactType="application/vnd.other"),
    lambda d: d.pop("artifactType"),
    lambda d: d.update(schemaVersion=1),
    lambda d: d.update(mediaType="application/vnd.oci.image.index.v1+json"),
    lambda d: d.pop("config"),
    lambda d: d.update(config=[]),
    lambda d: d["config"].update(mediaType="application/vnd.oci.image.config.v1+json"),
    lambda d: d["config"].update(size=10**12),
    lambda d: d["config"].update(size=-1),
    lambda d: d["config"].update(size=True),
    lambda d: d["config"].update(size="1"),
    lambda d: d["config"].update(size=10),
    lambda d: d["config"].update(digest="sha256:../../etc/passwd"),
    lambda d: d["config"].update(digest="md5:" + "0" * 32),
    lambda d: d.update(layers={}),
    lambda d: d.update(layers=None),
    lambda d: d.update(layers=d["layers"] * 100),
    lambda d: d["layers"].append(d["layers"][0]),
    lambda d: d["layers"].append(d["layers"][1]),
    lambda d: d["layers"].pop(),
    lambda d: d["layers"][0].update(size=10**9),
    lambda d: d["layers"][1].update(size=10**12),
    lambda d: d["layers"][1].update(size=0),
    lambda d: d["layers"][1].update(mediaType="application/x-tar"),
    lambda d: d["layers"][1]["annotations"].update({"org.opencontainers.image.title": "../nvidia.ko"}),
    lambda d: d["layers"][1]["annotations"].update({"org.opencontainers.image.title": "nvidia-uvm.ko"}),
    lambda d: d["layers"][1].update(annotations=[]),
    lambda d: d["layers"][1].pop("annotations"),
    lambda d: d["layers"][1].update(digest=d["layers"][2]["digest"], size=d["layers"][2]["size"]),
    lambda d: d["layers"].append("layer"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_document_that_lies(
    change: Callable[[Any], object], hostile: Hostile, held: Artifact, made: ModuleSet, tmp_path: Path
) -> None:
    """Wrong types, sizes, names and layers in the image manifest are refused; nothing is written beside."""
    hostile.documents[f"set-{made.key}"] = changed(held, change)
    (tmp_path / "around").mkdir()
    refused(hostile, made, tmp_path / "around" / "taken")
    assert {path.name for path in (tmp_path / "around").iterdir()} <= {"taken"}


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"1",
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'"' + b"a" * 2_000_000,
    ],
    ids=lambda document: repr(document[:6]),
)
def test_a_document_that_is_none(document: bytes, hostile: Hostile, made: ModuleSet, tmp_path: Path) -> None:
    """No JSON, another JSON, nested without end, too large: refused."""
    hostile.documents[f"set-{made.key}"] = document
    gc.disable()  # what is collected at the end of the stack fails in pytest's own hook
    try:
        refused(hostile, made, tmp_path / "taken")
    finally:
        gc.enable()


def test_a_wrong_media_type(hostile: Hostile, held: Artifact, made: ModuleSet, tmp_path: Path) -> None:
    """A document that comes as something else than an image manifest is not looked into."""

    def answer(handler: Handler) -> bool:
        if "manifests" not in handler.path:
            return False
        handler.reply(200, held.document(), "text/html")
        return True

    hostile.hook = answer
    assert "text/html" in refused(hostile, made, tmp_path / "taken")


def test_a_manifest_of_another_set(hostile: Hostile, made: ModuleSet, tmp_path: Path) -> None:
    """A whole, sound set under the key of another one is refused: an old one replayed, say."""
    old = write_signed(tmp_path / "old", recipe(kernel_release="5.0"), None)
    hostile.documents[f"set-{made.key}"] = hostile.hold(old, tmp_path / "held").document()
    assert f"is the set {old.key[:12]}" in refused(hostile, made, tmp_path / "taken")


@pytest.mark.once
def test_a_bomb(hostile: Hostile, held: Artifact, made: ModuleSet, tmp_path: Path) -> None:
    """A module that expands to more than its manifest says is cut there, one that is too small refused."""
    for size in (2_000_000_000, made.manifest.files[0].size + 1, 10):
        with (tmp_path / "zeros").open("wb") as file:
            file.truncate(size)
        compress(tmp_path / "zeros", tmp_path / "packed", SystemCommands())
        data = (tmp_path / "packed").read_bytes()
        hostile.blobs[digest_of(data)] = data
        if len(data) > most_compressed(made.manifest.files[0].size):
            continue
        bomb = evolve(held.modules["nvidia.ko"], digest=digest_of(data), size=len(data))
        hostile.documents[f"set-{made.key}"] = evolve(
            held, modules={**held.modules, "nvidia.ko": bomb}
        ).document()
        place = tmp_path / f"taken{size}"
        assert "expands to" in refused(hostile, made, place)
        assert sum(path.stat().st_size for path in place.iterdir()) < 1_000_000


def test_what_is_no_zstd(tmp_path: Path) -> None:
    """Other bytes, other compressions and streams that are cut are told apart from a full disk."""
    (tmp_path / "in").write_bytes(b"a" * 10_000)
    compress(tmp_path / "in", tmp_path / "packed", SystemCommands())
    good = (tmp_path / "packed").read_bytes()
    for bad in (b"", b"a" * 100, good[:-3], damaged(good), good + b"junk"):
        (tmp_path / "packed").write_bytes(bad)
        with pytest.raises(ValueError):
            expand(tmp_path / "packed", tmp_path / "out", 10_000, SystemCommands())


def test_a_module_with_another_content(
    hostile: Hostile, held: Artifact, made: ModuleSet, tmp_path: Path
) -> None:
    """A blob that is sound, and of the right size, but not the module of the manifest, is refused."""
    (tmp_path / "evil").write_bytes(damaged(made.paths[0].read_bytes()))
    compress(tmp_path / "evil", tmp_path / "packed", SystemCommands())
    data = (tmp_path / "packed").read_bytes()
    hostile.blobs[digest_of(data)] = data
    evil = evolve(held.modules["nvidia.ko"], digest=digest_of(data), size=len(data))
    hostile.documents[f"set-{made.key}"] = evolve(
        held, modules={**held.modules, "nvidia.ko": evil}
    ).document()
    assert "the manifest says" in refused(hostile, made, tmp_path / "taken")


def test_a_manifest_that_lies(hostile: Hostile, held: Artifact, made: ModuleSet, tmp_path: Path) -> None:
    """Each changed byte of the manifest is refused, although the registry has it under a digest that fits."""
    data = made.manifest_bytes
    for at in range(0, len(data), max(1, len(data) // 40)):
        bad = data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]
        blob = blob_of(bad, held.config.media_type)
        hostile.blobs[blob.digest] = bad
        hostile.documents[f"set-{made.key}"] = evolve(held, config=blob).document()
        refused(hostile, made, tmp_path / f"taken{at}")


def test_credentials_go_to_nobody_else(
    hostile: Hostile, held: Artifact, made: ModuleSet, tmp_path: Path
) -> None:
    """Content that is kept elsewhere is fetched from there, without telling who we are."""
    from oci_registry import write_auth

    auth = write_auth(tmp_path / "auth.json", hostile.host)
    with hostile_registry() as elsewhere:
        elsewhere.blobs = dict(hostile.blobs)

        def answer(handler: Handler) -> bool:
            if "authorization" not in {name.lower() for name in handler.headers}:
                handler.reply(401, b"", Www_Authenticate='Basic realm="x"')
                return True
            if "blobs" in handler.path:
                handler.reply(307, b"", Location=f"http://{elsewhere.host}{handler.path}")
                return True
            return False

        hostile.hook = answer
        offer = hostile.open(auth=auth).offer(made.key)
        assert offer is not None
        offer.fetch(tmp_path / "taken")
        assert len(elsewhere.seen) >= len(made.files) - 1
        assert not [headers for _, _, headers in elsewhere.seen if "authorization" in headers]


def test_where_content_is_kept_elsewhere_nobody_there_names_a_token_server(
    hostile: Hostile, made: ModuleSet, tmp_path: Path
) -> None:
    """Who keeps content for a registry is not the registry: what it asks for, we do not tell."""
    from oci_registry import write_auth

    auth = write_auth(tmp_path / "auth.json", hostile.host)
    with hostile_registry() as elsewhere:

        def ask(handler: Handler) -> bool:
            handler.reply(401, b"", Www_Authenticate=f'Bearer realm="http://{elsewhere.host}/token"')
            return True

        def send(handler: Handler) -> bool:
            handler.reply(307, b"", Location=f"http://{elsewhere.host}{handler.path}")
            return True

        elsewhere.hook, hostile.hook = ask, send
        with pytest.raises(StoreError, match="which asks who we are"):
            hostile.open(auth=auth).offer(made.key)
        assert not [headers for _, _, headers in elsewhere.seen if "authorization" in headers]


@pytest.mark.parametrize(
    "target",
    ["http://192.0.2.1/x", "ftp://127.0.0.1/x", "file:///etc/passwd", "//[", "http://[::1", "gopher://x"],
)
def test_where_nobody_is_sent(
    target: str, hostile: Hostile, held: Artifact, made: ModuleSet, tmp_path: Path
) -> None:
    """A redirect to what is not TLS, or no address, is not followed."""

    def answer(handler: Handler) -> bool:
        handler.reply(302, b"", Location=target)
        return True

    hostile.hook = answer
    refused(hostile, made, tmp_path / "taken")


@pytest.mark.once
def test_a_push_that_takes_for_ever(hostile: Hostile, made: ModuleSet) -> None:
    """Each answer comes in time, and nothing comes of it: given up, since the node waits to load its set."""

    def answer(handler: Handler) -> bool:
        handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        time.sleep(0.4)
        statuses = {"POST": 202, "PUT": 404 if "manifests" in handler.path else 201}
        where = f"http://{hostile.host}/upload"
        handler.reply(statuses.get(handler.command, 404), b"", Location=where)
        return True

    hostile.hook = answer
    started = time.monotonic()
    with pytest.raises(StoreError, match="is slow: set-") as caught:
        hostile.open().push(made)
    assert time.monotonic() - started < SECONDS
    assert caught.value.hint


@pytest.mark.parametrize("where", ["", "http://192.0.2.1/upload", "file:///x", "//["])
def test_a_push_that_is_sent_elsewhere(where: str, hostile: Hostile, made: ModuleSet) -> None:
    """A place to upload to that is not TLS, or no address, is refused."""

    def answer(handler: Handler) -> bool:
        handler.reply(
            202 if handler.command == "POST" else 404, b"", **({"Location": where} if where else {})
        )
        return True

    hostile.hook = answer
    started = time.monotonic()
    with pytest.raises(StoreError):
        hostile.open().push(made)
    assert time.monotonic() - started < SECONDS

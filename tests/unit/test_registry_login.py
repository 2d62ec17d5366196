"""Who we are to a registry: logins as container tools keep them, tokens, proxies; never told to others."""

from __future__ import annotations

import base64
import json
import re
import socket
import threading
from pathlib import Path
from typing import Any, Dict, Iterator, Optional
from urllib.parse import parse_qs, urlsplit

import pytest
from hostile_registry import Handler, Hostile
from oci_registry import OciRegistry, oci_registry

from nvdriver_build.commands import SystemCommands
from nvdriver_build.errors import StoreError, UsageError
from nvdriver_build.registry import Proxies, open_registry, parse_place
from nvdriver_build.registry.login import Login, read_login

PLACE = parse_place("registry.example.com:5000/team/drivers")


def encoded(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def login_of(
    tmp_path: Path, auths: Any, place: str = "registry.example.com:5000/team/drivers"
) -> Optional[Login]:
    path = tmp_path / "auth.json"
    path.write_text(json.dumps({"auths": auths}))
    return read_login(path, parse_place(place))


@pytest.mark.parametrize(
    ("auths", "user"),
    [
        ({"registry.example.com:5000": {"auth": encoded("host", "p")}}, "host"),
        ({"https://registry.example.com:5000/v2/": {"auth": encoded("url", "p")}}, "url"),
        ({"registry.example.com:5000": {"username": "plain", "password": "p"}}, "plain"),
        (
            {
                "registry.example.com:5000": {"auth": encoded("host", "p")},
                "registry.example.com:5000/team": {"auth": encoded("team", "p")},
                "registry.example.com:5000/team/drivers": {"auth": encoded("drivers", "p")},
                "registry.example.com:5000/team/other": {"auth": encoded("other", "p")},
            },
            "drivers",
        ),
        (
            {
                "registry.example.com:5000": {"auth": encoded("host", "p")},
                "registry.example.com:5000/team": {"auth": encoded("team", "p")},
            },
            "team",
        ),
        (
            {
                "registry.example.com:5000/team/drivers": {},
                "registry.example.com:5000": {"auth": encoded("h", "p")},
            },
            "h",
        ),
    ],
)
def test_the_most_precise_entry(auths: Any, user: str, tmp_path: Path) -> None:
    """Repository, then its parents, then the host; an entry without a login is passed over."""
    found = login_of(tmp_path, auths)
    assert found is not None
    assert (found.user, found.password) == (user, "p")


@pytest.mark.parametrize(
    "auths",
    [{}, {"registry.example.com": {"auth": encoded("x", "p")}}, {"other:5000": {"auth": encoded("x", "p")}}],
)
def test_no_login_of_another(auths: Any, tmp_path: Path) -> None:
    """The login of another host, or of another port, is not ours to show."""
    assert login_of(tmp_path, auths) is None


def test_docker_hub(tmp_path: Path) -> None:
    """Docker's own names for its registry are understood."""
    found = login_of(
        tmp_path, {"https://index.docker.io/v1/": {"auth": encoded("hub", "p")}}, "docker.io/team/x"
    )
    assert found is not None
    assert found.user == "hub"
    assert parse_place("docker.io/team/x").url == "https://registry-1.docker.io/v2/team/x"


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"auths": []}', b'{"auths": 1}', b"x" * 2_000_000,
        b'{"auths": {"registry.example.com:5000": 1}}',
        b'{"auths": {"registry.example.com:5000": {"auth": 1}}}',
        b'{"auths": {"registry.example.com:5000": {"auth": "\xc3\xa4"}}}',
        b'{"auths": {"registry.example.com:5000": {"auth": "/w=="}}}',
        b'{"auths": {"registry.example.com:5000": {"username": 1, "password": []}}}',
        b'{"auths": {"registry.example.com:5000": {"registrytoken": "a\\r\\nX: y"}}}',
    ],
)  # fmt: skip
def test_a_file_that_is_none(content: bytes, tmp_path: Path) -> None:
    """What is no such file is wrong configuration; nothing of it is shown."""
    path = tmp_path / "auth.json"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_login(path, PLACE)
    assert "NVDRIVER_REGISTRY_AUTH" in (caught.value.hint or "")
    assert len(caught.value.message) < 200


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """A missing file is told; a folder and a pipe are none."""
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(UsageError):
            read_login(path, PLACE)
    assert read_login(None, PLACE) is None


def test_helpers_are_not_started(tmp_path: Path) -> None:
    """A program that the file names is not run."""
    path = tmp_path / "auth.json"
    path.write_text(json.dumps({"credsStore": "evil", "credHelpers": {"registry.example.com:5000": "evil"}}))
    assert read_login(path, PLACE) is None


def test_a_secret_is_never_in_a_text() -> None:
    """No value of a login or a proxy is in what could be printed."""
    login = Login("me", "hunter2", "hunter2", "hunter2")
    assert "hunter2" not in f"{login!r} {login}"
    assert "hunter2" not in repr(Proxies("http://me:hunter2@proxy:1"))
    with pytest.raises(UsageError) as caught:
        Proxies("hunter2://x")
    assert "hunter2" not in f"{caught.value.message} {caught.value.hint}"


def token_server(hostile: Hostile, seen: Dict[str, Any], token: str = "the-token") -> None:
    """Have the registry ask for tokens of a token server, which it is itself."""

    def answer(handler: Handler) -> bool:
        if handler.path.startswith("/token"):
            size = int(handler.headers.get("Content-Length") or 0)
            seen["form"] = parse_qs(handler.rfile.read(size).decode())
            seen["query"] = parse_qs(urlsplit(handler.path).query)
            seen["login"] = handler.headers.get("Authorization")
            seen["count"] = seen.get("count", 0) + 1
            handler.reply(200, json.dumps({"token": token}).encode())
            return True
        if handler.headers.get("Authorization") != f"Bearer {token}":
            realm = f'Bearer realm="http://{hostile.host}/token",service="svc",scope="repository:*:*"'
            handler.reply(401, b"", Www_Authenticate=realm)
            return True
        return False

    hostile.hook = answer


def test_a_token_for_what_we_do(hostile: Hostile, tmp_path: Path) -> None:
    """A token is asked for with name and password, for our repository and what we do there, once."""
    seen: Dict[str, Any] = {}
    token_server(hostile, seen)
    auth = tmp_path / "auth.json"
    auth.write_text(json.dumps({"auths": {hostile.host: {"auth": encoded("me", "word")}}}))
    found = hostile.open(auth=auth)
    assert found.offer("0" * 64) is None
    assert found.offer("1" * 64) is None
    assert seen["query"] == {"service": ["svc"], "scope": ["repository:r:pull"]}
    assert seen["login"] == "Basic " + encoded("me", "word")
    assert seen["count"] == 1


def test_an_anonymous_token(hostile: Hostile) -> None:
    """A registry that gives tokens to everyone needs no login."""
    seen: Dict[str, Any] = {}
    token_server(hostile, seen)
    assert hostile.open().offer("0" * 64) is None
    assert seen["login"] is None


def test_an_identity_token(hostile: Hostile, tmp_path: Path) -> None:
    """A refresh token is given for an access token, in the body of a request, not in an address."""
    seen: Dict[str, Any] = {}
    token_server(hostile, seen)
    auth = tmp_path / "auth.json"
    entry = {"auth": encoded("<token>", ""), "identitytoken": "refresh"}
    auth.write_text(json.dumps({"auths": {hostile.host: entry}}))
    assert hostile.open(auth=auth).offer("0" * 64) is None
    assert seen["query"] == {}
    assert seen["form"]["grant_type"] == ["refresh_token"]
    assert seen["form"]["refresh_token"] == ["refresh"]


def test_a_registry_token(hostile: Hostile, tmp_path: Path) -> None:
    """A token of the registry's own is shown as it is."""
    seen: Dict[str, Any] = {}
    token_server(hostile, seen)
    auth = tmp_path / "auth.json"
    auth.write_text(json.dumps({"auths": {hostile.host: {"registrytoken": "the-token"}}}))
    assert hostile.open(auth=auth).offer("0" * 64) is None
    assert seen == {}


def test_a_token_that_ends(hostile: Hostile) -> None:
    """A token that is not taken any more is replaced by a new one, once."""
    seen: Dict[str, Any] = {}
    token_server(hostile, seen)
    found = hostile.open()
    assert found.offer("0" * 64) is None
    token_server(hostile, seen, token="the-next")
    assert found.offer("0" * 64) is None
    assert seen["count"] == 2


@pytest.mark.parametrize(
    "challenge",
    [
        "", "Bearer", 'Bearer realm=""', 'Bearer realm="http://192.0.2.1/token"', 'Bearer realm="file:///etc/passwd"',
        'Bearer realm="//["', "Negotiate", "Basic", 'Bearer realm="https://[::1"', "Bearer " + "a," * 2000,
    ],
)  # fmt: skip
def test_a_challenge_that_nobody_answers(challenge: str, hostile: Hostile) -> None:
    """A challenge without a token server with TLS, or of another scheme, is a refusal."""

    def answer(handler: Handler) -> bool:
        handler.reply(401, b"", Www_Authenticate=challenge)
        return True

    hostile.hook = answer
    with pytest.raises(StoreError):
        hostile.open().offer("0" * 64)


@pytest.mark.parametrize(
    "answer", [b"", b"{}", b"[]", b'{"token": 1}', b'{"token": "a\\r\\nb"}', b"[" * 50_000, b"a" * 200_000]
)
def test_a_token_server_that_talks_nonsense(answer: bytes, hostile: Hostile) -> None:
    """What is no token is not shown to anybody."""

    def hook(handler: Handler) -> bool:
        if handler.path.startswith("/token"):
            handler.reply(200, answer)
        else:
            handler.reply(401, b"", Www_Authenticate=f'Bearer realm="http://{hostile.host}/token"')
        return True

    hostile.hook = hook
    with pytest.raises(StoreError):
        hostile.open().offer("0" * 64)
    assert not [headers for _, _, headers in hostile.seen if "authorization" in headers]


@pytest.mark.parametrize(
    ("url", "bypass", "proxied"),
    [
        ("https://registry.example.com/v2/", (), True),
        ("https://registry.example.com/v2/", ("example.com",), False),
        ("https://registry.example.com/v2/", (".example.com",), False),
        ("https://registry.example.com/v2/", ("*.example.com",), False),
        ("https://registry.example.com/v2/", ("ample.com",), True),
        ("https://registry.example.com:5000/v2/", ("registry.example.com:5000",), False),
        ("https://registry.example.com/v2/", ("*",), False),
        ("https://registry.example.com/v2/", ("", " "), True),
        ("https://10.1.2.3:5000/v2/", ("10.0.0.0/8",), False),
        ("https://11.1.2.3:5000/v2/", ("10.0.0.0/8", "not/a/net"), True),
        ("https://[fd00::5]/v2/", ("fd00::/16",), False),
        ("https://127.0.0.1:5000/v2/", (), False),
        ("http://localhost:5000/v2/", (), False),
    ],
)
def test_where_a_proxy_is_passed_by(url: str, bypass: tuple[str, ...], proxied: bool) -> None:
    """Names with all below them, addresses, networks and loopback go without the proxy."""
    assert (Proxies("http://proxy:3128", bypass).of(url) is not None) == proxied


def test_the_environment_is_not_read(
    hostile: Hostile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither proxies nor logins of the environment or the home folder are used behind the configuration."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker/config.json").write_text(
        json.dumps({"auths": {hostile.host: {"auth": encoded("a", "b")}}})
    )
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    assert hostile.open().offer("0" * 64) is None
    assert not [headers for _, _, headers in hostile.seen if "authorization" in headers]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OciRegistry]:
    with oci_registry(tmp_path_factory.mktemp("registry")) as found:
        yield found


def test_through_a_proxy(registry: OciRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a proxy every byte goes through it, in a tunnel, and only the proxy sees its own password."""
    heads = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                head = b""
                while b"\r\n\r\n" not in head:
                    head += client.recv(4096)
                heads.append(head.decode())
                host, port = re.findall(r"CONNECT ([\d.]+):(\d+)", heads[-1])[0]
                server = socket.create_connection((host, int(port)))
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                for one, two in ((client, server), (server, client)):
                    threading.Thread(target=_pump, args=(one, two), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        proxy = f"http://me:hunter2@127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setattr("nvdriver_build.registry.place.is_loopback", lambda host: False)
        assert registry.open(proxies=Proxies(proxy)).offer("0" * 64) is None
    assert heads
    assert encoded("me", "hunter2") in heads[0]
    assert "hunter2" not in registry.log


def _pump(one: socket.socket, two: socket.socket) -> None:
    try:
        while data := one.recv(65536):
            two.sendall(data)
    except OSError:
        pass


def test_a_proxy_that_is_gone(registry: OciRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that does not answer is told like a registry that does not; its password is not shown."""
    monkeypatch.setattr("nvdriver_build.registry.place.is_loopback", lambda host: False)
    with pytest.raises(StoreError) as caught:
        registry.open(proxies=Proxies("http://me:hunter2@127.0.0.1:1")).offer("0" * 64)
    assert "hunter2" not in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize("rest", ["h:99999", "h:8a", "h:80:80"])
def test_a_proxy_whose_address_is_none(rest: str) -> None:
    """It is told, and the login in it is not."""
    registry = open_registry(
        "h.example.com/r", SystemCommands(), proxies=Proxies(f"http://me:hunter2@{rest}")
    )
    with pytest.raises(StoreError, match="HTTPS_PROXY is no address of a proxy") as caught:
        registry.offer("0" * 64)
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize("login", ["me:hunter2", "me:hunter2/x"])
@pytest.mark.parametrize("scheme", ["https://", "http://", ""])
def test_a_login_in_the_address(scheme: str, login: str) -> None:
    """It is refused, since everybody sees addresses, and is not told."""
    with pytest.raises(UsageError, match=r"@h[.]example[.]com/r") as caught:
        parse_place(f"{scheme}{login}@h.example.com/r")
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"

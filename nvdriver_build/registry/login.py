"""Logins as container tools keep them: `auth.json`, `.docker/config.json`, a mounted dockerconfigjson.

The formats are those of containers-auth.json(5) and of Docker's config.json. The file is only read. Helper
programs that it may name are not started: what they are is not this program's to trust.
"""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional

import structlog
from attrs import field, frozen

from nvdriver_build.errors import UsageError
from nvdriver_build.registry.place import Place

_MOST = 1024 * 1024
"""Bytes that such a file may have."""
_DOCKER_HUB = {"docker.io": ("index.docker.io", "registry-1.docker.io")}
_log = structlog.get_logger()


@frozen
class Login:
    """What to show a registry: a name and a password, or a token. No value of it is ever printed."""

    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    identity: Optional[str] = field(default=None, repr=False)
    """An OAuth2 refresh token."""
    bearer: Optional[str] = field(default=None, repr=False)
    """A token of the registry's own, shown as it is."""

    @property
    def basic(self) -> Optional[str]:
        """The value of an Authorization header with name and password."""
        if not self.user and not self.password:
            return None
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def read_login(path: Optional[Path], place: Place) -> Optional[Login]:
    """The login for a place, the most precise entry first; None where the file has none.

    UsageError where the file is no such file.
    """
    if path is None:
        return None
    document = _read(path)
    auths = {_plain(name): value for name, value in document.get("auths", {}).items()}
    for name in _names(place):
        if name in auths:
            login = _login(path, name, auths[name])
            if login is not None:
                return login
    if document.get("credsStore") or place.host in document.get("credHelpers", {}):
        _log.warning("the login is kept by a helper program, which is not started", file=str(path))
    return None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST + 1) if stat.S_ISREG(path.stat().st_mode) else b""
        document = json.loads(data) if len(data) <= _MOST else None
        if not isinstance(document, dict) or not all(
            isinstance(document.get(part, {}), dict) for part in ("auths", "credHelpers")
        ):
            raise ValueError
    except OSError as error:
        raise _bad(path, error.strerror or "cannot be read") from error
    except (ValueError, RecursionError):  # what json says may quote the file
        raise _bad(path, "is no auth.json") from None
    return document


def _plain(name: str) -> str:
    """Docker writes addresses such as https://index.docker.io/v1/ where others write a host."""
    name = name.partition("://")[2] or name
    for end in ("/v1/", "/v2/", "/v1", "/v2", "/"):
        if name.endswith(end):
            return name[: -len(end)]
    return name


def _names(place: Place) -> Iterator[str]:
    """Host and repository, then with one part less each time, down to the host."""
    parts = place.repository.split("/")
    for host in (place.host, *_DOCKER_HUB.get(place.host, ())):
        yield from ("/".join((host, *parts[:count])) for count in range(len(parts), -1, -1))


def _login(path: Path, name: str, entry: Any) -> Optional[Login]:
    try:
        if not isinstance(entry, dict):
            raise ValueError
        user, password = entry.get("username", ""), entry.get("password", "")
        if entry.get("auth"):
            user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
        found = Login(
            user,
            password.rstrip("\0"),
            entry.get("identitytoken") or None,
            entry.get("registrytoken") or None,
        )
        values = (found.user, found.password, found.identity or "", found.bearer or "")
        if not all(isinstance(value, str) and value.isprintable() for value in values):
            raise ValueError
    except (ValueError, TypeError, AttributeError):
        raise _bad(path, f"has no usable entry for {name}") from None
    return found if found != Login() else None


def _bad(path: Path, why: str) -> UsageError:
    return UsageError(
        f"{path}: {why}",
        hint="NVDRIVER_REGISTRY_AUTH takes what 'podman login --authfile' writes, or a dockerconfigjson",
    )

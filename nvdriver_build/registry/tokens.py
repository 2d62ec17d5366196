"""What to show a registry that asks who we are: a name and a password, or a token from its token server.

The forms are those of RFC 7235 and of the Distribution project's 'Token Authentication Specification', with
the refresh token of its OAuth2 part.
"""

from __future__ import annotations

import json
import re
import time
from typing import Mapping, Optional
from urllib.parse import urlencode

from nvdriver_build.registry.login import Login
from nvdriver_build.registry.place import Place, host_of, is_loopback
from nvdriver_build.registry.transport import Failed, Transport

_SCHEME = re.compile(r"(?:^|,)\s*(basic|bearer)\s+", re.IGNORECASE)
_VALUE = re.compile(r'([a-z]+)="([^"]*)"', re.IGNORECASE)
_LONGEST = 8192
_MOST = 64 * 1024
"""Bytes of a token server's answer."""
_CLIENT = "nvdriver-build"


def authorization(
    transport: Transport,
    place: Place,
    login: Optional[Login],
    headers: Mapping[str, str],
    scope: str,
    until: float,
) -> Optional[str]:
    """The Authorization header that a 401 asks for, None where there is nothing to show.

    Failed where the token server gives none.
    """
    if login is not None and login.bearer is not None:
        return f"Bearer {login.bearer}"
    challenges = _challenges(headers.get("www-authenticate", "")[:_LONGEST])
    if "bearer" in challenges:
        return "Bearer " + _token(transport, place, login, challenges["bearer"], scope, until)
    if "basic" in challenges and login is not None:
        return login.basic
    return None


def _challenges(header: str) -> dict[str, dict[str, str]]:
    """The parameters of each scheme that a WWW-Authenticate header names."""
    found = list(_SCHEME.finditer(header))
    ends = [each.start() for each in found[1:]] + [len(header)]
    return {
        each[1].lower(): {name.lower(): value for name, value in _VALUE.findall(header[each.end() : end])}
        for each, end in zip(found, ends)
    }


def _token(
    transport: Transport,
    place: Place,
    login: Optional[Login],
    challenge: Mapping[str, str],
    scope: str,
    until: float,
) -> str:
    """A token for exactly what we do, whatever more the challenge offers."""
    realm = challenge.get("realm", "")
    plain = place.scheme == "http" and realm.startswith("http://") and is_loopback(host_of(realm))
    if not host_of(realm) or not (realm.startswith("https://") or plain):
        raise Failed(f"names no token server with TLS, but {realm[:200]!r}")
    query = {"service": challenge.get("service", ""), "scope": f"repository:{place.repository}:{scope}"}
    seconds = max(0.1, until - time.monotonic())
    if login is not None and login.identity is not None:
        form = {
            **query,
            "grant_type": "refresh_token",
            "refresh_token": login.identity,
            "client_id": _CLIENT,
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        body = urlencode(form).encode()
        answer = transport.request("POST", realm, headers=headers, body=body, most=_MOST, seconds=seconds)
    else:
        basic = login.basic if login else None
        headers = {"Authorization": basic} if basic else {}
        url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(query)}"
        answer = transport.request("GET", url, headers=headers, most=_MOST, seconds=seconds)
    if answer.status != 200:
        raise Failed(f"its token server {host_of(realm)} answers with {answer.status}")
    return _read(answer.body)


def _read(body: bytes) -> str:
    try:
        document = json.loads(body)
        token = document.get("token") or document.get("access_token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise ValueError
        return token
    except (ValueError, AttributeError, RecursionError):
        raise Failed("its token server gives no token") from None

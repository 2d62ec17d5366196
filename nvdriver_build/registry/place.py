"""Where a registry's repository is, and how it is reached: address, proxies, TLS."""

from __future__ import annotations

import ipaddress
import re
import ssl
from pathlib import Path
from typing import Optional
from urllib.parse import urlsplit

from attrs import field, frozen

from nvdriver_build.errors import UsageError

_HOST = re.compile(r"([0-9A-Za-z]([0-9A-Za-z.-]*[0-9A-Za-z])?|\[[0-9A-Fa-f:]+\])(:[0-9]{1,5})?")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
"""OCI Distribution Specification 1.1, 'Pulling manifests'."""
_PROXY = re.compile(r"https?://[!-~]+")
_LONGEST = 255
_DOCKER_HUB, _DOCKER_HUB_API = "docker.io", "registry-1.docker.io"


@frozen
class Place:
    """A repository: `host` as it was given, with its port; `scheme` is `http` for loopback only."""

    scheme: str
    host: str
    repository: str

    @property
    def url(self) -> str:
        """What every address of the repository starts with."""
        host = _DOCKER_HUB_API if self.host == _DOCKER_HUB else self.host
        return f"{self.scheme}://{host}/v2/{self.repository}"

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}"


def parse_place(text: str) -> Place:
    """The place that `HOST[:PORT]/REPOSITORY` names; UsageError where it names none."""
    scheme, _, rest = text.rpartition("://")
    host, _, repository = rest.partition("/")
    sound = _HOST.fullmatch(host) and len(repository) <= _LONGEST and _REPOSITORY.fullmatch(repository)
    if not sound or scheme not in ("", "http", "https"):
        raise UsageError(
            f"{_shown(text)} is no place in a registry",
            hint="it is HOST[:PORT]/REPOSITORY, such as registry.example.com:5000/drivers/nvidia",
        )
    if scheme == "http" and not is_loopback(host_of(f"http://{host}")):
        raise UsageError(
            f"{_shown(text)} is a registry without TLS",
            hint="http:// is for loopback addresses; NVDRIVER_REGISTRY_CA names a private CA",
        )
    return Place(scheme or "https", host, repository)


def _shown(text: str) -> str:
    """The text, without a login that somebody has put before the host."""
    _, login, rest = text.rpartition("@")
    return repr(f"{'***' if login else ''}{login}{rest}"[:_LONGEST])


def host_of(url: str) -> str:
    """The host of an address, without brackets; empty where it has none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether a name or address never leaves this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def tls_context(authority: Optional[Path] = None) -> ssl.SSLContext:
    """What the system trusts and, beside it, the certificates in `authority`; UsageError for a bad file."""
    context = ssl.create_default_context()
    if authority is None:
        return context
    try:
        context.load_verify_locations(cafile=str(authority))
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"{authority} cannot be used as certificates of a registry's CA: {error.strerror or error}",
            hint="it is a PEM file with one or more certificates",
        ) from error
    return context


def _proxy(text: Optional[str]) -> Optional[str]:
    """The address of a proxy, with a scheme; UsageError, which does not show it: it may hold a password."""
    if text is None:
        return None
    address = text if "://" in text else f"http://{text}"
    if not _PROXY.fullmatch(address) or not host_of(address):
        raise UsageError(
            "HTTPS_PROXY is no address of a proxy", hint="it takes http://[USER:PASSWORD@]HOST:PORT"
        )
    return address


@frozen
class Proxies:
    """The proxy for https, None for none; `bypass` has the hosts without one, as NO_PROXY lists them.

    A word of `bypass` is a name (with all below it), an address, a network such as 10.0.0.0/8, or `*`.
    """

    https: Optional[str] = field(default=None, repr=False, converter=_proxy)
    bypass: tuple[str, ...] = ()

    def of(self, url: str) -> Optional[str]:
        """The proxy for an address; what is not https never leaves this machine."""
        host = host_of(url)
        if is_loopback(host) or any(_matches(word, host) for word in self.bypass):
            return None
        return self.https


def _matches(word: str, host: str) -> bool:
    name = word.strip().lower().partition(":")[0] if word.count(":") == 1 else word.strip().lower()
    name = name.lstrip("*").lstrip(".") if name != "*" else name
    if not name:
        return False
    if name == "*" or host == name or host.endswith(f".{name}"):
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False)
    except ValueError:
        return False

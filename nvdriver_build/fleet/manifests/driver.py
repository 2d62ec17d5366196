"""`Driver`: what a person decides about the driver and its pods; read from a settings file, checked at
once.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import typing
from typing import Any, Mapping, Optional

from attrs import field, fields, frozen

from nvdriver_build.errors import UsageError
from nvdriver_build.fleet.upgrade.settings import upgrade_settings
from nvdriver_build.fleet.versions import digest

_DNS_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_IMAGE = re.compile(r"[A-Za-z0-9][\w.:/@+-]{0,511}", re.ASCII)
_FILE = re.compile(r"[\w][-\w.]{0,252}", re.ASCII)
_NAME_LIMIT = 20
_ITERATIONS = 100_000
_MADE_HERE = {
    "NODE_NAME": "nothing",
    "NVIDIA_VISIBLE_DEVICES": "nothing",
    "RHCOS_VERSION": "nothing",
    "RHCOS_IMAGE_MISSING": "nothing",
    "NVDRIVER_REGISTRY": "registry",
    "NVDRIVER_REGISTRY_CA": "registry_ca",
    "NVDRIVER_REGISTRY_AUTH": "registry_auth_secret",
    "NVDRIVER_TRUST": "trust",
    "GPU_DIRECT_RDMA_ENABLED": "rdma",
}
"""Variables that we set, and the field that stands for each."""
_IN_MODULES = ("DRIVER_VERSION", "KERNEL_MODULE_TYPE", "NVDRIVER_SOURCE", "NVDRIVER_COMPILER_MISMATCH")
"""Variables that change what is built."""


@frozen
class Driver:
    """The driver image and how its pods are to be.

    `name` begins the names of all objects and is who manages them. `env` are settings of docs/contracts.md,
    `parameters` the files of /drivers. `registry` is HOST[:PORT]/REPOSITORY; `registry_ca` and `trust` are
    certificates (PEM), `registry_auth_secret` a Secret with `.dockerconfigjson`, `push_auth_secret` the one
    that prebuilds have in its place, `sign_secret` one with `tls.key`, `tls.crt` and maybe `pin`,
    `env_secret` one whose keys become environment. `resources` are of both containers, as NVIDIA's operator
    has it; `tolerations` come on top of nvidia.com/gpu, for all pods. `prebuild_user` is a user id, where no
    SCC gives one. `fleet_image` is what `fleet watch` runs in. `upgrade` says how a new driver rolls over the
    nodes (`fleet.upgrade.Settings`); it changes no pod.
    """

    image: str
    name: str = "nvdriver-build"
    namespace: str = "nvdriver-build"
    env: Mapping[str, str] = field(factory=dict)
    env_secret: Optional[str] = None
    parameters: Mapping[str, str] = field(factory=dict)
    registry: Optional[str] = None
    registry_ca: Optional[str] = None
    registry_auth_secret: Optional[str] = None
    push_auth_secret: Optional[str] = None
    trust: Optional[str] = None
    sign_secret: Optional[str] = None
    rdma: bool = False
    nfd_label: bool = False
    pull_secrets: tuple[str, ...] = ()
    tolerations: tuple[Mapping[str, Any], ...] = ()
    resources: Mapping[str, Any] = field(factory=dict)
    prebuild_resources: Mapping[str, Any] = field(factory=dict)
    prebuild_user: Optional[int] = None
    fleet_image: Optional[str] = None
    upgrade: Mapping[str, Any] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        _require(_IMAGE, "image", self.image, "a pull spec, best by digest")
        secrets = ("env_secret", "registry_auth_secret", "push_auth_secret", "sign_secret")
        for name in ("name", "namespace", *secrets):
            if getattr(self, name) is not None:
                _require(_DNS_LABEL, name, getattr(self, name), "a DNS label: small letters, digits, dashes")
        if self.fleet_image is not None:
            _require(_IMAGE, "fleet_image", self.fleet_image, "a pull spec, best by digest")
        if len(self.name) > _NAME_LIMIT:
            raise _bad("name", self.name, f"at most {_NAME_LIMIT} characters: names of pods begin with it")
        if self.registry is not None:
            _require(_IMAGE, "registry", self.registry, "HOST[:PORT]/REPOSITORY")
        for name in self.env:
            _require(_ENV_NAME, "env", name, "names of environment variables")
            if name in _MADE_HERE:
                raise UsageError(f"env sets {name}", hint=f"{_MADE_HERE[name]} is the field for it")
        for name in self.parameters:
            _require(_FILE, "parameters", name, "file names such as nvidia.conf")
        upgrade_settings(self.upgrade)

    @property
    def identity(self) -> str:
        """A digest over all that changes the modules: a prebuild for another one does not count."""
        env = [f"{name}={self.env.get(name, '')}" for name in _IN_MODULES]
        publishing = (self.sign_secret or "", self.registry or "", self.trust or "")
        return digest("\n".join((self.image, *env, *publishing)))

    @property
    def prebuilds(self) -> bool:
        """Whether there is where to publish to, a key to sign with, and a certificate that nodes trust."""
        return None not in (self.registry, self.sign_secret, self.trust)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The Secrets whose content a driver's pod reads: a change of it changes the pod."""
        return tuple(sorted(filter(None, (self.env_secret, self.registry_auth_secret))))


def driver_settings(document: object) -> Driver:
    """The driver that a settings file (YAML or JSON, parsed) describes; UsageError for what it does not
    know.
    """
    if not isinstance(document, dict):
        raise UsageError("the settings are no mapping of names to values", hint=f"known are {_known()}")
    types = typing.get_type_hints(Driver)
    for name, value in document.items():
        if name not in types:
            near = difflib.get_close_matches(str(name), types, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {_known()}"
            raise UsageError(f"unknown setting {str(name)[:80]!r}", hint=hint)
        _require_type(name, value, str(types[name]))
    if "image" not in document:
        raise UsageError(
            "no driver image is given", hint="image, or --image, is the pull spec of our driver image"
        )
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in document.items()
    }
    return Driver(**{name: value for name, value in values.items() if value is not None})


def is_image(text: str) -> bool:
    """Whether this can be the pull spec of an image."""
    return _IMAGE.fullmatch(text) is not None


def content_digest(name: str, data: Mapping[str, Any]) -> str:
    """What stands for the content of a Secret in a pod's annotation.

    Those who may read pods may not read Secrets: a password is not found by trying, hence PBKDF2.
    """
    text = "\n".join(f"{key}={data[key]}" for key in sorted(data))
    return hashlib.pbkdf2_hmac("sha256", text.encode(), name.encode(), _ITERATIONS, 16).hex()


def _require_type(name: str, value: object, wanted: str) -> None:
    """The kinds of the fields above are few: each is told by what its annotation says."""
    if value is None and "Optional" in wanted:
        return
    texts = "Mapping[str, str]" in wanted
    if wanted.startswith("tuple") or "tuple" in wanted:
        inner = dict if "Mapping" in wanted else str
        fine, words = isinstance(value, list) and all(isinstance(each, inner) for each in value), "a list"
    elif "Mapping" in wanted:
        fine = isinstance(value, dict) and all(
            isinstance(key, str) and (not texts or isinstance(each, str)) for key, each in value.items()
        )
        words = "a mapping of texts to texts (put numbers and true into quotes)" if texts else "a mapping"
    elif "bool" in wanted:
        fine, words = isinstance(value, bool), "true or false"
    elif "int" in wanted:
        fine, words = isinstance(value, int) and not isinstance(value, bool) and value > 0, "a whole number"
    else:
        fine, words = isinstance(value, str), "a text"
    if not fine:
        raise _bad(name, value, words)


def _require(pattern: re.Pattern[str], name: str, value: str, words: str) -> None:
    if not pattern.fullmatch(value):
        raise _bad(name, value, words)


def _bad(name: str, value: object, words: str) -> UsageError:
    return UsageError(f"{name} is {str(value)[:80]!r}", hint=f"it takes {words}")


def _known() -> str:
    return ", ".join(each.name for each in fields(Driver))

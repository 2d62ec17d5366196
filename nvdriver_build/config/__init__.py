"""The only reader of environment variables: NVIDIA's names with NVIDIA's meaning, and ours with NVDRIVER_.

Every setting is one row of `_SETTINGS`; docs/contracts.md lists them.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any, Callable, Mapping, NamedTuple, Optional
from urllib.parse import unquote

from attrs import field, frozen

from nvdriver_build.commands import DEFAULT_PATH
from nvdriver_build.config.places import default_store, host_modules, toolkit_beside
from nvdriver_build.errors import UsageError

__all__ = [
    "LOG_FORMATS",
    "MOST_JOBS",
    "Config",
    "checked_key",
    "host_modules",
    "kubeconfig",
    "read_config",
    "run_dir",
    "wants_color",
]

PREFIX = "NVDRIVER_"
FABRIC_MANAGER = "NVFM_CONFIG_"
MOST_JOBS = 1024
"""Thousands of compilers at once run out of file descriptors (dkms 100)."""
LOG_FORMATS = ("console", "json")
_MIB = 1024 * 1024
_TOKEN, _SECRET = "pkcs11:", "pin-value"
"""RFC 7512: a key in a token, and what must not be in its URI."""
_OF_SECRETS = ("NVDRIVER_SIGN_KEY", "NVDRIVER_SIGN_PIN_FILE", "NVDRIVER_REGISTRY_AUTH")  # often given instead
_DIGITS = 9


@frozen
class Config:
    """What was asked for. Paths are absolute; None is 'not given'."""

    path: str
    store: Path
    registry_ca: Optional[Path]
    registry_auth: Optional[Path]
    https_proxy: Optional[str] = field(repr=False)
    no_proxy: Optional[tuple[str, ...]]
    kubernetes_host: Optional[str]
    kubernetes_port: Optional[str]
    reuse: bool
    registry: Optional[str] = field(repr=False)
    trust: Optional[Path]
    driver_version: Optional[str]
    kind: str
    source: Optional[Path]
    run_sha256: Optional[str]
    headers: Optional[Path]
    module_tree: Optional[Path]
    toolkit_dir: Optional[Path]
    bundle: Path
    image_missing: bool
    rhcos_version: Optional[str]
    rdma: bool
    host_mofed: bool
    fabric_manager: Mapping[str, str]
    parameters: Path
    run_dir: Path
    compiler_mismatch: bool
    jobs: Optional[int]
    job_memory: int
    announce_driver_ready: bool
    driver_root: Path
    config_digest: Optional[str]
    node_name: Optional[str]
    log_format: Optional[str]
    sign_key: Optional[str]
    sign_cert: Optional[Path]
    sign_pin_file: Optional[Path]


class _Setting(NamedTuple):
    name: str
    field: str
    default: Any
    parse: Callable[[str, str], Any]


def _text(name: str, value: str) -> str:
    if not value.isprintable():  # a byte that is no UTF-8 could not be written to nvidia-driver.state, say
        raise _bad(name, value, "one line of printable text")
    return value


def _path(name: str, value: str) -> Path:
    if not value.startswith("/"):
        raise _bad(name, "***" if name in _OF_SECRETS else value, "an absolute path")
    return Path(value)


def checked_key(name: str, text: str) -> str:
    """A path, made absolute, or a `pkcs11:` URI; UsageError, which does not repeat it, where it has a PIN.

    `name` is that of the setting or option. Everybody who lists processes sees the arguments of openssl.
    """
    if _SECRET in unquote(text).lower():
        raise UsageError(
            f"{name} has a {_SECRET} in it, which everybody on this machine could read",
            hint="take it out, and name a file with the PIN: NVDRIVER_SIGN_PIN_FILE or --pin-file",
        )
    if not text.startswith(_TOKEN):
        return str(Path(text).absolute())
    if not text.isprintable():
        raise UsageError(
            f"{name} is no URI of one line", hint="see RFC 7512, such as pkcs11:token=T;object=O"
        )
    return text


def _key(name: str, value: str) -> str:
    return checked_key(name, value if value.startswith(_TOKEN) else str(_path(name, value)))


def _flag(name: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise _bad(name, value, "true or false")
    return value.lower() == "true"


def _count(name: str, value: str) -> int:
    if not value.isascii() or not value.isdigit() or len(value) > _DIGITS or int(value) < 1:
        raise _bad(name, value[:40], f"a whole number from 1 up, of at most {_DIGITS} digits")
    return int(value)


def _jobs(name: str, value: str) -> int:
    if _count(name, value) > MOST_JOBS:
        raise _bad(name, value, f"a whole number from 1 up to {MOST_JOBS}")
    return int(value)


def _mebibytes(name: str, value: str) -> int:
    return _count(name, value) * _MIB


def _one_of(*allowed: str) -> Callable[[str, str], str]:
    def parse(name: str, value: str) -> str:
        if value not in allowed:
            raise _bad(name, value, " or ".join(allowed))
        return value

    return parse


def _allow(name: str, value: str) -> bool:
    return _one_of("allow", "refuse")(name, value) == "allow"


def _compatible(name: str, value: str) -> bool:
    return _one_of("exact", "compatible")(name, value) == "compatible"


def _off(name: str, value: str) -> bool:
    if _flag(name, value):
        raise UsageError(f"{name}=true is not supported yet", hint=f"unset {name}; it is on the way")
    return False


def _passthrough(name: str, value: str) -> str:
    if value != "passthrough":
        raise UsageError(f"{name}={value} is not supported yet", hint="only DRIVER_TYPE=passthrough is")
    return value


def _of_others(_: str, value: str) -> str:
    """A name that other programs have, too: a value that is bad for us matters where it is used."""
    return value


def _words(_: str, value: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in value.split(",") if word.strip())


_SETTINGS = (
    _Setting("DRIVER_VERSION", "driver_version", None, _text),
    _Setting("DRIVER_TYPE", "", None, _passthrough),
    _Setting("KERNEL_MODULE_TYPE", "kind", "auto", _one_of("auto", "open", "proprietary")),
    _Setting("GPU_DIRECT_RDMA_ENABLED", "rdma", False, _flag),
    _Setting("USE_HOST_MOFED", "host_mofed", False, _flag),
    _Setting("GDS_ENABLED", "", False, _off),
    _Setting("GDRCOPY_ENABLED", "", False, _off),
    _Setting("DRIVER_CONFIG_DIGEST", "config_digest", None, _text),
    _Setting("RHCOS_IMAGE_MISSING", "image_missing", False, _flag),
    _Setting("RHCOS_VERSION", "rhcos_version", None, _text),
    _Setting("NODE_NAME", "node_name", None, _text),
    _Setting("NVDRIVER_STORE", "store", None, _path),
    _Setting("NVDRIVER_REUSE", "reuse", True, _compatible),
    _Setting("NVDRIVER_REGISTRY", "registry", None, _text),
    _Setting("NVDRIVER_REGISTRY_CA", "registry_ca", None, _path),
    _Setting("NVDRIVER_REGISTRY_AUTH", "registry_auth", None, _path),
    _Setting("HTTPS_PROXY", "https_proxy", None, _of_others),
    _Setting("NO_PROXY", "no_proxy", None, _words),
    _Setting("KUBERNETES_SERVICE_HOST", "kubernetes_host", None, _of_others),
    _Setting("KUBERNETES_SERVICE_PORT", "kubernetes_port", None, _of_others),
    _Setting("NVDRIVER_TRUST", "trust", None, _path),
    _Setting("NVDRIVER_SOURCE", "source", None, _path),
    _Setting("NVDRIVER_RUN_SHA256", "run_sha256", None, _text),
    _Setting("NVDRIVER_HEADERS", "headers", None, _path),
    _Setting("NVDRIVER_MODULE_TREE", "module_tree", None, _path),
    _Setting("NVDRIVER_TOOLKIT_DIR", "toolkit_dir", None, _path),
    _Setting("NVDRIVER_BUNDLE", "bundle", Path("/usr/libexec/nvdriver-build"), _path),
    _Setting("NVDRIVER_PARAMETERS", "parameters", Path("/drivers"), _path),
    _Setting("NVDRIVER_RUN_DIR", "run_dir", Path("/run/nvidia"), _path),
    _Setting("NVDRIVER_COMPILER_MISMATCH", "compiler_mismatch", False, _allow),
    _Setting("NVDRIVER_JOBS", "jobs", None, _jobs),
    _Setting("NVDRIVER_JOB_MEMORY_MIB", "job_memory", 1024 * _MIB, _mebibytes),
    _Setting("NVDRIVER_ANNOUNCE_DRIVER_READY", "announce_driver_ready", False, _flag),
    _Setting("NVDRIVER_DRIVER_ROOT", "driver_root", Path("/run/nvidia/driver"), _path),
    _Setting("NVDRIVER_SIGN_KEY", "sign_key", None, _key),
    _Setting("NVDRIVER_SIGN_CERT", "sign_cert", None, _path),
    _Setting("NVDRIVER_SIGN_PIN_FILE", "sign_pin_file", None, _path),
    _Setting("NVDRIVER_LOG_FORMAT", "log_format", None, _one_of(*LOG_FORMATS)),
)


def read_config(environment: Optional[Mapping[str, str]] = None, root: Path = Path("/")) -> Config:
    """The configuration that the environment gives; UsageError for a bad value or an unknown name of ours."""
    given = os.environ if environment is None else environment
    _refuse_unknown(given)
    values: dict[str, Any] = {}
    for setting in _SETTINGS:
        text = given.get(setting.name, "")
        value = setting.parse(setting.name, text) if text else setting.default
        if setting.field:
            values[setting.field] = value
    values["store"] = values["store"] or default_store(given, root)
    values["toolkit_dir"] = values["toolkit_dir"] or toolkit_beside(root)
    values["fabric_manager"] = _fabric_manager(given)
    return Config(path=given.get("PATH") or DEFAULT_PATH, **values)


def kubeconfig(environment: Optional[Mapping[str, str]] = None) -> Optional[Path]:
    """The first of KUBECONFIG, as kubectl has it, or the home's; None in a pod: it has a service account."""
    given = os.environ if environment is None else environment
    home = "" if given.get("KUBERNETES_SERVICE_HOST") else f"{given.get('HOME', '')}/.kube/config"
    found = given.get("KUBECONFIG", "").split(os.pathsep)[0] or home
    return Path(found) if found else None


def wants_color(environment: Optional[Mapping[str, str]] = None) -> bool:
    """Whether a terminal may be written to in colours (https://no-color.org)."""
    return not (os.environ if environment is None else environment).get("NO_COLOR")


def run_dir(environment: Optional[Mapping[str, str]] = None) -> Path:
    """The folder that others look into, where everything else that was given may be wrong."""
    (setting,) = (each for each in _SETTINGS if each.field == "run_dir")
    text = (os.environ if environment is None else environment).get(setting.name, "")
    return Path(text) if text.startswith("/") else Path(setting.default)


def _fabric_manager(given: Mapping[str, str]) -> Mapping[str, str]:
    """NVIDIA's NVFM_CONFIG_NAME=VALUE: lines of the fabric manager's own configuration."""
    names = sorted(name for name in given if name.startswith(FABRIC_MANAGER))
    return {name[len(FABRIC_MANAGER) :]: _text(name, given[name]) for name in names}


def _refuse_unknown(given: Mapping[str, str]) -> None:
    # Compared without the prefix, which makes any two of our names look near.
    known = {_stem(setting.name): setting.name for setting in _SETTINGS}
    for name in sorted(given):
        if name.startswith(PREFIX) and known.get(_stem(name)) != name:
            near = difflib.get_close_matches(name, known.values(), 1, 0.9) or [
                known[stem] for stem in difflib.get_close_matches(_stem(name), known, 1)
            ]
            ours = ", ".join(each for each in known.values() if each.startswith(PREFIX))
            hint = f"did you mean {near[0]}?" if near else f"known are {ours}"
            raise UsageError(f"unknown setting {name}", hint=hint)  # its value may be a secret


def _stem(name: str) -> str:
    return name[len(PREFIX) :] if name.startswith(PREFIX) else name


def _bad(name: str, value: str, wanted: str) -> UsageError:
    return UsageError(f"{name} is {value!r}", hint=f"it takes {wanted}")

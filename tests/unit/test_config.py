"""Settings: NVIDIA's names with NVIDIA's meaning, ours with NVDRIVER_, and everything else refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, Optional

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvdriver_build import config as config_room
from nvdriver_build.commands import DEFAULT_PATH
from nvdriver_build.config import Config, host_modules, read_config, wants_color
from nvdriver_build.errors import UsageError

ROOT = {"PATH": "/usr/bin", "HOME": "/root"}


@pytest.fixture
def root_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def test_defaults(root_user: None, tmp_path: Path) -> None:
    """With nothing set, the defaults are those of the contract."""
    found = read_config({}, tmp_path)
    assert attrs.asdict(found) == {
        "path": DEFAULT_PATH,
        "store": Path("/var/lib/nvdriver-build"),
        "reuse": True,
        "registry_ca": None,
        "registry_auth": None,
        "https_proxy": None,
        "no_proxy": None,
        "kubernetes_host": None,
        "kubernetes_port": None,
        "registry": None,
        "trust": None,
        "driver_version": None,
        "kind": "auto",
        "source": None,
        "run_sha256": None,
        "headers": None,
        "module_tree": None,
        "toolkit_dir": None,
        "bundle": Path("/usr/libexec/nvdriver-build"),
        "image_missing": False,
        "rhcos_version": None,
        "rdma": False,
        "host_mofed": False,
        "fabric_manager": {},
        "parameters": Path("/drivers"),
        "run_dir": Path("/run/nvidia"),
        "compiler_mismatch": False,
        "jobs": None,
        "job_memory": 1024**3,
        "announce_driver_ready": False,
        "driver_root": Path("/run/nvidia/driver"),
        "config_digest": None,
        "node_name": None,
        "log_format": None,
        "sign_key": None,
        "sign_cert": None,
        "sign_pin_file": None,
    }


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("PATH", "/bin", "path", "/bin"),
        ("DRIVER_VERSION", "535.261.03", "driver_version", "535.261.03"),
        ("KERNEL_MODULE_TYPE", "open", "kind", "open"),
        ("KERNEL_MODULE_TYPE", "proprietary", "kind", "proprietary"),
        ("DRIVER_CONFIG_DIGEST", "12345", "config_digest", "12345"),
        ("NODE_NAME", "worker-0", "node_name", "worker-0"),
        ("NVDRIVER_STORE", "/store", "store", Path("/store")),
        ("NVDRIVER_REUSE", "exact", "reuse", False),
        ("NVDRIVER_REUSE", "compatible", "reuse", True),
        ("NVDRIVER_REGISTRY", "/shared", "registry", "/shared"),
        ("NVDRIVER_REGISTRY_CA", "/ca.pem", "registry_ca", Path("/ca.pem")),
        ("NVDRIVER_REGISTRY_AUTH", "/auth.json", "registry_auth", Path("/auth.json")),
        ("HTTPS_PROXY", "http://user:word@proxy:3128", "https_proxy", "http://user:word@proxy:3128"),
        ("NO_PROXY", ".svc, 10.0.0.0/8,", "no_proxy", (".svc", "10.0.0.0/8")),
        ("KUBERNETES_SERVICE_HOST", "10.0.0.1", "kubernetes_host", "10.0.0.1"),
        ("KUBERNETES_SERVICE_PORT", "443", "kubernetes_port", "443"),
        ("NVDRIVER_TRUST", "/trust.pem", "trust", Path("/trust.pem")),
        ("NVDRIVER_SOURCE", "/driver", "source", Path("/driver")),
        ("NVDRIVER_RUN_SHA256", "ab", "run_sha256", "ab"),
        ("NVDRIVER_HEADERS", "/", "headers", Path("/")),
        ("NVDRIVER_MODULE_TREE", "/m", "module_tree", Path("/m")),
        ("NVDRIVER_TOOLKIT_DIR", "/mnt/shared", "toolkit_dir", Path("/mnt/shared")),
        ("NVDRIVER_BUNDLE", "/b", "bundle", Path("/b")),
        ("RHCOS_IMAGE_MISSING", "true", "image_missing", True),
        ("RHCOS_VERSION", "416.94.202408260940-0", "rhcos_version", "416.94.202408260940-0"),
        ("GPU_DIRECT_RDMA_ENABLED", "true", "rdma", True),
        ("USE_HOST_MOFED", "true", "host_mofed", True),
        ("NVDRIVER_PARAMETERS", "/p", "parameters", Path("/p")),
        ("NVDRIVER_RUN_DIR", "/r", "run_dir", Path("/r")),
        ("NVDRIVER_COMPILER_MISMATCH", "allow", "compiler_mismatch", True),
        ("NVDRIVER_COMPILER_MISMATCH", "refuse", "compiler_mismatch", False),
        ("NVDRIVER_JOBS", "8", "jobs", 8),
        ("NVDRIVER_JOB_MEMORY_MIB", "512", "job_memory", 512 * 1024**2),
        ("NVDRIVER_ANNOUNCE_DRIVER_READY", "True", "announce_driver_ready", True),
        ("NVDRIVER_DRIVER_ROOT", "/d", "driver_root", Path("/d")),
        ("NVDRIVER_SIGN_KEY", "/keys/tls.key", "sign_key", "/keys/tls.key"),
        ("NVDRIVER_SIGN_KEY", "pkcs11:token=t;object=o", "sign_key", "pkcs11:token=t;object=o"),
        ("NVDRIVER_SIGN_CERT", "/keys/tls.crt", "sign_cert", Path("/keys/tls.crt")),
        ("NVDRIVER_SIGN_PIN_FILE", "/keys/pin", "sign_pin_file", Path("/keys/pin")),
        ("NVDRIVER_LOG_FORMAT", "json", "log_format", "json"),
    ],
)
def test_each_setting_is_read(name: str, text: str, field: str, value: Any) -> None:
    """Each name sets its field, and nothing else; an empty value, as Kubernetes gives it, is the default."""
    base = read_config(ROOT)
    assert read_config({**ROOT, name: text}) == attrs.evolve(base, **{field: value})
    if name != "PATH":
        assert read_config({**ROOT, name: ""}) == base


def test_every_setting_has_a_test() -> None:
    """No row of the table is forgotten above; those without a field are only ever refused."""
    rows = {setting.name for setting in config_room._SETTINGS if setting.field}
    tested = {case[0] for case in test_each_setting_is_read.pytestmark[0].args[1]} - {"PATH"}
    assert tested == rows
    rows = {setting.field for setting in config_room._SETTINGS if setting.field}
    assert rows | {"path", "fabric_manager"} == {field.name for field in attrs.fields(Config)}


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("KERNEL_MODULE_TYPE", "closed", "auto or open or proprietary"),
        ("NVDRIVER_STORE", "store", "an absolute path"),
        ("NVDRIVER_STORE", "~/store", "an absolute path"),
        ("NVDRIVER_JOBS", "0", "from 1 up"),
        ("NVDRIVER_JOBS", "-1", "from 1 up"),
        ("NVDRIVER_JOBS", "1025", "from 1 up to 1024"),
        ("NVDRIVER_JOBS", "1.5", "from 1 up"),
        ("NVDRIVER_JOBS", "٣", "from 1 up"),
        ("NVDRIVER_JOBS", "9" * 5000, "from 1 up"),
        ("NVDRIVER_JOB_MEMORY_MIB", "1GiB", "from 1 up"),
        ("NVDRIVER_COMPILER_MISMATCH", "yes", "allow or refuse"),
        ("NVDRIVER_ANNOUNCE_DRIVER_READY", "1", "true or false"),
        ("NVDRIVER_LOG_FORMAT", "xml", "console or json"),
        ("DRIVER_VERSION", "535\nevil", "one line"),
        ("DRIVER_CONFIG_DIGEST", "12\udcff", "one line"),
    ],
)
def test_a_bad_value_is_told(name: str, text: str, told: str) -> None:
    """UsageError names the setting and its value, the hint says what it takes; a huge value is cut."""
    with pytest.raises(UsageError) as caught:
        read_config({**ROOT, name: text})
    assert caught.value.message.startswith(f"{name} is {text[:40]!r}"[:45])
    assert len(caught.value.message) < 120
    assert told in (caught.value.hint or "")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("NVDRIVER_SIGN_KEY", "-----BEGIN PRIVATE KEY-----\nhunter2"),
        ("NVDRIVER_SIGN_KEY", "PKCS11:token=t?pin-value=hunter2"),
        ("NVDRIVER_SIGN_KEY", "/pkcs11:token=t?pin-value=hunter2"),
        ("NVDRIVER_SIGN_PIN_FILE", "hunter2"),
        ("NVDRIVER_REGISTRY_AUTH", '{"auths": {"h": {"password": "hunter2"}}}'),
    ],
)
def test_a_secret_in_place_of_its_file_is_not_told(name: str, text: str) -> None:
    """Whoever gives the key, the PIN or the login itself is told the setting, and the log has no secret."""
    with pytest.raises(UsageError, match=name) as caught:
        read_config({**ROOT, name: text})
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("NVDRIVER_STROE", "did you mean NVDRIVER_STORE?"),
        ("NVDRIVER_HEADER", "did you mean NVDRIVER_HEADERS?"),
        ("NVDRIVER_VERSION", "did you mean DRIVER_VERSION?"),
        ("NVDRIVER_DRIVER_VERSION", "did you mean DRIVER_VERSION?"),
        ("NVDRIVER_", "known are NVDRIVER_STORE, "),
        ("NVDRIVER_XYZZYQ", "known are NVDRIVER_STORE, "),
    ],
)
def test_an_unknown_setting_is_told(name: str, hint: str) -> None:
    """An unknown name of ours is refused with the near one; its value is not shown: it may be a secret."""
    with pytest.raises(UsageError) as caught:
        read_config({**ROOT, name: "hunter2"})
    assert caught.value.message == f"unknown setting {name}"
    assert (caught.value.hint or "").startswith(hint)
    assert "hunter2" not in str(caught.value) + (caught.value.hint or "")


def test_other_names_are_none_of_ours() -> None:
    """Whatever else is in the environment is not looked at."""
    assert read_config(
        {**ROOT, "NVIDIA_VISIBLE_DEVICES": "void", "NVDRIVER": "x", "nvdriver_x": ""}
    ) == read_config(ROOT)


@pytest.mark.parametrize(
    "setting",
    ["GDS_ENABLED=true", "GDRCOPY_ENABLED=true", "DRIVER_TYPE=vgpu"],
)
def test_what_is_not_supported_is_told(setting: str) -> None:
    """What another image would have to bring ends with exit 2; switched off it is fine."""
    name, _, value = setting.partition("=")
    with pytest.raises(UsageError, match=f"{setting} is not supported yet") as caught:
        read_config({**ROOT, name: value})
    assert caught.value.hint
    assert read_config({**ROOT, name: "passthrough" if name == "DRIVER_TYPE" else "false"}) == read_config(
        ROOT
    )


@given(
    name=st.sampled_from([setting.name for setting in config_room._SETTINGS]),
    value=st.text(st.characters(blacklist_characters="\0"), max_size=30),
)
def test_any_value_is_read_or_told(name: str, value: str) -> None:
    """No value of any setting raises anything but UsageError."""
    try:
        read_config({**ROOT, name: value})
    except UsageError as error:
        assert name in error.message


def test_lines_for_the_fabric_manager() -> None:
    """NVFM_CONFIG_NAME=VALUE comes out by NAME, whatever the value but for a line's end."""
    given = {"NVFM_CONFIG_FABRIC_MODE": "1", "NVFM_CONFIG_LOG": "$(a 'b\")", "NVFM_CONFIG": "x"}
    assert read_config({**ROOT, **given}).fabric_manager == {"FABRIC_MODE": "1", "LOG": "$(a 'b\")"}
    with pytest.raises(UsageError, match="NVFM_CONFIG_A"):
        read_config({**ROOT, "NVFM_CONFIG_A": "1\nB=2"})


def test_store_of_a_user() -> None:
    """Who is not root has the store in the cache folder; a relative XDG_CACHE_HOME is passed over."""
    cases: Dict[str, Dict[str, str]] = {
        "/home/u/.cache": {"HOME": "/home/u"},
        "/cache": {"HOME": "/home/u", "XDG_CACHE_HOME": "/cache"},
        "/home/v/.cache": {"HOME": "/home/v", "XDG_CACHE_HOME": "cache"},
        "/.cache": {},
    }
    real = os.geteuid
    os.geteuid = lambda: 1000
    try:
        found = {base: read_config(given).store for base, given in cases.items()}
    finally:
        os.geteuid = real
    assert found == {base: Path(base) / "nvdriver-build" / "store" for base in cases}


def _root_with_host(tmp_path: Path, host: Optional[str]) -> Path:
    """A root whose /proc/1/root leads to the folder `host`, to the root itself, or nowhere."""
    (tmp_path / "proc" / "1").mkdir(parents=True)
    (tmp_path / "host").mkdir()
    if host is not None:
        (tmp_path / "proc" / "1" / "root").symlink_to(tmp_path / host)
    return tmp_path


def test_store_of_the_host(root_user: None, tmp_path: Path) -> None:
    """A container that sees the host keeps the store there: it must outlive the pod."""
    root = _root_with_host(tmp_path, "host")
    assert read_config(ROOT, root).store == root / "proc/1/root/var/lib/nvdriver-build"
    assert host_modules(root) == root / "proc/1/root/lib/modules"


@pytest.mark.parametrize("host", ["", "gone", None])
def test_store_where_no_host_is_seen(root_user: None, tmp_path: Path, host: Optional[str]) -> None:
    """On the host itself, and where process 1 cannot be looked at, the store is here."""
    root = _root_with_host(tmp_path, host)
    assert read_config(ROOT, root).store == Path("/var/lib/nvdriver-build")
    assert host_modules(root) == root / "lib/modules"


def test_a_mounted_store_is_taken(root_user: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a volume is mounted at the store's place, that is it, host or not."""
    monkeypatch.setattr(Path, "is_mount", lambda self: str(self) == "/var/lib/nvdriver-build")
    assert read_config(ROOT, _root_with_host(tmp_path, "host")).store == Path("/var/lib/nvdriver-build")


def test_colours_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR with any value does; empty it counts as not there (https://no-color.org)."""
    found = [wants_color(given) for given in ({}, {"NO_COLOR": ""}, {"NO_COLOR": "1"}, {"NO_COLOR": "0"})]
    assert found == [True, True, False, False]
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_color()


def test_the_toolkit_beside_is_found(root_user: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes in by `oc exec` has not what the entrypoint exports; what is exported counts first."""
    assert read_config(ROOT).toolkit_dir is None
    shared = Path("/mnt/shared-nvidia-driver-toolkit")
    monkeypatch.setattr(Path, "is_mount", lambda self: self == shared)
    assert read_config(ROOT).toolkit_dir == shared
    assert read_config({**ROOT, "NVDRIVER_TOOLKIT_DIR": "/other"}).toolkit_dir == Path("/other")


def test_the_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an argument the process's own environment is read."""
    monkeypatch.setenv("NVDRIVER_STORE", "/from/environment")
    assert read_config().store == Path("/from/environment")

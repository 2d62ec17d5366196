"""Who builds, agreed on by Leases of a real API, with the rights of a driver's pod."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import yaml
from cluster_rendered import rights, whole_driver
from cluster_rig import Cluster as Real

from nvdriver_build.registry.turns import Cluster, LeaseBoard, NoBoard


def pod(real: Real, account: str, folder: Path) -> Cluster:
    """How a pod with this account sees the API."""
    config = yaml.safe_load(real.as_account(account, folder).read_text())
    (folder / "token").write_text(config["users"][0]["user"]["token"])
    server = next(iter(config["clusters"]))["cluster"]
    authority = server.get("certificate-authority")
    if "certificate-authority-data" in server:
        (folder / "ca.crt").write_bytes(base64.b64decode(server["certificate-authority-data"]))
        authority = folder / "ca.crt"
    found = Path(authority) if authority else None
    return Cluster(server["server"].rstrip("/"), real.space, folder / "token", found)


def test_turns(real: Real, tmp_path: Path) -> None:
    """One alone has the turn; it renews it, gives it back, and then another one has it."""
    driver = whole_driver(real)
    rights(real, tmp_path, driver)
    cluster = pod(real, f"{driver.name}-driver", tmp_path)
    one, two = LeaseBoard(cluster), LeaseBoard(cluster)
    assert one.look("abc") is None
    assert one.claim("abc", "one", None)
    assert not two.claim("abc", "two", None)
    seen = two.look("abc")
    assert seen is not None
    assert seen.holder == "one"
    assert one.renew("abc", "one")
    assert not two.claim("abc", "two", seen), "it has changed since it was seen"
    one.release("abc", "one")
    free = two.look("abc")
    assert free is not None
    assert free.holder == ""
    assert two.claim("abc", "two", free)
    assert not one.renew("abc", "one")


def test_turns_without_rights(real: Real, tmp_path: Path) -> None:
    """An account that may not is told so: the registry's markers serve instead."""
    driver = whole_driver(real)
    rights(real, tmp_path, driver)
    board = LeaseBoard(pod(real, f"{driver.name}-prebuild", tmp_path))
    with pytest.raises(NoBoard, match="403"):
        board.look("abc")

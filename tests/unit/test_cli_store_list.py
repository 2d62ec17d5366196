"""`store list` for people: every column whole, whatever the texts are and wherever it is printed."""

from __future__ import annotations

from pathlib import Path

from cli_runs import cli
from module_sets import put, recipe

from nvdriver_build.store import Store


def test_columns_are_whole_where_piped(tmp_path: Path) -> None:
    """No column is cut or wrapped at 80 characters: a row is a line, with the whole release and reason."""
    place = tmp_path / ("deep" * 30)
    release = "6.1.0-1-" + "long-flavour-" * 8 + "amd64"
    good = put(Store(place), recipe(kernel_release=release))
    bad = put(Store(place), recipe(arch="arm64"))
    (bad.folder / "manifest.json").unlink()
    lines = cli(tmp_path, "store", "list", NVDRIVER_STORE=str(place)).stdout.splitlines()
    assert (len(lines), lines[0].split()) == (3, ["key", "driver", "kind", "kernel", "MiB", "last", "used"])
    shown = {line[:12]: line for line in lines}
    assert f"  {release}  " in shown[good.key[:12]]
    assert shown[bad.key[:12]].endswith(f"damaged: {bad.folder} is no module set: it has no manifest.json")


def test_names_are_no_markup(tmp_path: Path) -> None:
    """Brackets in a path, and escapes in a manifest, are text."""
    store = Store(tmp_path / "a[/b]c")
    bad = put(store, recipe())
    put(store, recipe(driver_version="1\x1b[31m"))
    (bad.folder / "manifest.json").unlink()
    done = cli(tmp_path, "store", "list", NVDRIVER_STORE=str(store.root))
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path}/a[/b]c/sets/" in done.stdout
    assert (r"1\x1b[31m" in done.stdout, "\x1b" in done.stdout) == (True, False)

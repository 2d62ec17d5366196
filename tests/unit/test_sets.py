"""Module sets on disk: what was written is read, and what is damaged is never taken."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator

import pytest
from elf_files import export, module
from hypothesis import given, settings
from hypothesis import strategies as st
from module_sets import PROVENANCE, recipe, write_set

from nvdriver_build.errors import ModuleFormatError, StoreError
from nvdriver_build.sets import (
    MANIFEST,
    Manifest,
    ModuleFile,
    describe,
    explain_miss,
    open_set,
    parse_manifest,
    write_manifest,
)

ONE = {"modules": ("nvidia",)}


def test_what_is_described_is_read(tmp_path: Path) -> None:
    """A set of real modules is described, written and read back equal, with what each module says."""
    wanted = recipe()
    nvidia = module(("name=nvidia", "vermagic=6.1.0 SMP ", "license=GPL", "version=9"), {"printk": 7})
    export(nvidia, {"nv_register": 0xABC})
    (tmp_path / "nvidia.ko").write_bytes(nvidia.build())
    (tmp_path / "nvidia-uvm.ko").write_bytes(module(("name=nvidia_uvm", "vermagic=6.1.0 SMP ")).build())
    made = describe(
        tmp_path, wanted, PROVENANCE, flavour="standard", vermagic="6.1.0 SMP ", config_digest="c" * 64
    )
    read = open_set(tmp_path)
    assert read == made
    assert (read.key, read.manifest.recipe, read.manifest.provenance) == (wanted.key, wanted, PROVENANCE)
    assert [path.name for path in read.paths] == ["nvidia.ko", "nvidia-uvm.ko"]
    assert [facts.name for facts in read.read()] == ["nvidia", "nvidia_uvm"]
    facts = read.manifest.files[0].facts
    assert (facts["path"], facts["version"], facts["symbols_needed"]) == (
        "nvidia.ko",
        "9",
        {"printk": "0x00000007"},
    )
    assert facts["symbols_exported"] == {"nv_register": "0x00000abc"}
    assert facts["signature"] is None


def test_what_is_no_module_is_not_described(tmp_path: Path) -> None:
    """A build that leaves rubbish is told by the file's name, and no manifest is written."""
    (tmp_path / "nvidia.ko").write_bytes(b"rubbish")
    with pytest.raises(ModuleFormatError, match=r"nvidia\.ko"):
        describe(tmp_path, recipe(**ONE), PROVENANCE, flavour="", vermagic="", config_digest="")
    assert not (tmp_path / MANIFEST).exists()


def test_key_depends_on_every_field_of_the_recipe() -> None:
    """Each field of the recipe makes another key."""
    fields: Dict[str, Any] = {
        "driver_version": "1", "source_digest": "1", "kind": "proprietary", "modules": ("nvidia",),
        "kernel_release": "1", "arch": "arm64", "symvers_sha256": "3", "config_sha256": "4",
        "debug_info": True, "mofed_symvers_sha256": "5", "certificate": "6", "schema": 2,
    }  # fmt: skip
    keys = {recipe(**{name: value}).key for name, value in fields.items()} | {recipe().key}
    assert len(keys) == len(fields) + 1


def test_key_stays_what_it_is() -> None:
    """The key of a known recipe: if this changes, every store is emptied by an update."""
    assert recipe().key == "01376df041712ce80bed5092d6910bb8389bf935bc5ad6d405af76ff410dcd55"


def test_order_of_modules_is_the_recipes(tmp_path: Path) -> None:
    """Files are those of the recipe, in its order: it is the order in which they are loaded."""
    made = write_set(tmp_path, recipe(modules=("nvidia-uvm", "nvidia")))
    assert [path.name for path in open_set(tmp_path).paths] == ["nvidia-uvm.ko", "nvidia.ko"]
    assert open_set(tmp_path) == made


def test_what_has_no_manifest_is_no_set(tmp_path: Path) -> None:
    """It may never have been one: a mistyped name."""
    write_set(tmp_path, recipe())
    (tmp_path / MANIFEST).unlink()
    for place, why in ((tmp_path, f"it has no {MANIFEST}"), (tmp_path / "x", "there is no such folder")):
        with pytest.raises(StoreError, match=f"^{place} is no module set: {why}") as caught:
            open_set(place)
        assert caught.value.hint


@pytest.mark.parametrize("file", ["nvidia.ko", "nvidia-uvm.ko"])
def test_a_missing_file_is_damage(tmp_path: Path, file: str) -> None:
    """Each file of a set has to be there; the message names it."""
    write_set(tmp_path, recipe())
    (tmp_path / file).unlink()
    with pytest.raises(StoreError, match=f"is damaged: .*{file}") as caught:
        open_set(tmp_path)
    assert caught.value.hint


def test_a_flipped_byte_is_damage(tmp_path: Path) -> None:
    """A changed byte of a module is told with both digests; without `check` it is not looked for."""
    made = write_set(tmp_path, recipe())
    data = bytearray(made.paths[1].read_bytes())
    data[100] ^= 1
    made.paths[1].write_bytes(data)
    with pytest.raises(StoreError, match=r"nvidia-uvm\.ko has sha256 [0-9a-f]{64}, the manifest says "):
        open_set(tmp_path)
    assert open_set(tmp_path, check=False) == made


def test_every_cut_manifest_is_damage(tmp_path: Path) -> None:
    """Wherever the manifest ends too early, the set is damaged; its last newline is no loss."""
    write_set(tmp_path, recipe(**ONE))
    text = (tmp_path / MANIFEST).read_bytes()
    for length in range(len(text) - 1):
        (tmp_path / MANIFEST).write_bytes(text[:length])
        with pytest.raises(StoreError, match="its manifest cannot be read"):
            open_set(tmp_path)


@pytest.mark.once
def test_every_flipped_byte_of_a_manifest_is_damage(tmp_path: Path) -> None:
    """No changed byte of the manifest passes, in facts and provenance neither, but such as mean the same."""
    write_set(tmp_path, recipe(**ONE))
    text = (tmp_path / MANIFEST).read_bytes()
    document = json.loads(text)
    for place in range(len(text)):
        for bit in (0x01, 0x20, 0x80):
            data = bytearray(text)
            data[place] ^= bit
            (tmp_path / MANIFEST).write_bytes(data)
            if not _same(bytes(data), document):
                with pytest.raises(StoreError, match="is damaged"):
                    open_set(tmp_path)


def _same(data: bytes, document: object) -> bool:
    try:
        return bool(json.loads(data) == document)
    except ValueError:
        return False


def _leaves(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    children = (
        document.items()
        if isinstance(document, dict)
        else enumerate(document)
        if isinstance(document, list)
        else ()
    )
    yield path
    for name, child in children:
        yield from _leaves(child, (*path, name))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(value=JSON, choice=st.integers(0, 10_000))
def test_any_manifest_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, value: Any, choice: int
) -> None:
    """Any JSON in the place of any part of a manifest is StoreError, or read; never another error."""
    folder = tmp_path_factory.mktemp("set")
    write_set(folder, recipe(**ONE), size=100)
    document = json.loads((folder / MANIFEST).read_text())
    places = list(_leaves(document))
    place = places[choice % len(places)]
    changed = _with(document, place, value)
    (folder / MANIFEST).write_text(json.dumps(changed))
    for check in (True, False):
        try:
            open_set(folder, check=check)
        except StoreError:
            continue
        assert not check or changed == document


def _with(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    copy = dict(document) if isinstance(document, dict) else list(document)
    copy[place[0]] = _with(document[place[0]], place[1:], value)
    return copy


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", '"x"', "[" * 100_000, '{"a":' * 100_000, "\x00", "{}", '{"sha256": null}', "1e999"],
)
def test_what_is_no_manifest_is_damage(tmp_path: Path, text: str) -> None:
    """Rubbish, and JSON too deep to be read, is damage like any other."""
    write_set(tmp_path, recipe())
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(StoreError, match="is damaged: its manifest"):
        open_set(tmp_path)


def test_a_manifest_is_damage_at_any_depth(tmp_path: Path) -> None:
    """What is nested so deep that JSON can be read, and not be written again, is damage like any other."""
    write_set(tmp_path, recipe(**ONE), size=100)
    document = json.loads((tmp_path / MANIFEST).read_text())
    document["files"][0]["facts"] = {"deep": "HERE"}
    before, after = json.dumps(document).encode().split(b'"HERE"')
    limit = sys.getrecursionlimit()
    for depth in range(limit - 150, limit + 20):
        with pytest.raises(StoreError, match="is damaged: its manifest"):
            parse_manifest(before + b"[" * depth + b"]" * depth + after, "a test")


def _rewrite(change: Callable[[Dict[str, Any]], None], folder: Path) -> None:
    document = json.loads((folder / MANIFEST).read_text())
    change(document)
    (folder / MANIFEST).write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda d: d["recipe"].update(driver_version="1"), "its key .* is not that of its recipe"),
        (lambda d: d["files"].pop(), "its files are not the modules of its recipe"),
        (lambda d: d["files"][0].update(file="../nvidia.ko"), "its files are not"),
        (lambda d: d.update(schema=2), "its schema is 2, this program knows 1"),
    ],
)
def test_contradictions_are_damage(
    tmp_path: Path, change: Callable[[Dict[str, Any]], None], why: str
) -> None:
    """A manifest that contradicts itself is told by what contradicts; no file outside of the set is named."""
    write_set(tmp_path, recipe())
    _rewrite(change, tmp_path)
    with pytest.raises(StoreError, match=why):
        open_set(tmp_path, check=False)


def test_a_huge_manifest_is_not_read(tmp_path: Path) -> None:
    """A manifest of 100 MiB (all holes here) is refused unread."""
    write_set(tmp_path, recipe())
    with (tmp_path / MANIFEST).open("r+b") as file:
        file.truncate(100 * 1024**2)
    with pytest.raises(StoreError, match="larger than"):
        open_set(tmp_path)


def test_a_miss_is_explained() -> None:
    """The first field that differs from the nearest set is told, with both values; an empty store too."""
    assert explain_miss(recipe(), []) == "the store is empty"
    near, far = recipe(kernel_release="6.1.0-2-amd64"), recipe(arch="arm64", kind="proprietary")
    told = explain_miss(recipe(), [far, near])
    assert (
        told == f"the nearest set, {near.key[:12]}, has kernel_release 6.1.0-2-amd64, wanted is 6.1.0-1-amd64"
    )


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "../nvidia", "/etc/nvidia", "", "a\nb"])
def test_a_name_that_is_no_file_name_is_damage(tmp_path: Path, name: str) -> None:
    """A manifest that fits together but names what no file of the set can be called is told as damage."""
    odd = recipe(modules=(name,))
    file = ModuleFile(f"{name}.ko", "0" * 64, 1, {})
    write_manifest(tmp_path, Manifest(odd.key, odd, "standard", "6", "3" * 64, PROVENANCE, (file,)))
    for check in (True, False):
        with pytest.raises(StoreError, match="is no name of a module's file"):
            open_set(tmp_path, check=check)


@pytest.mark.parametrize("name", [MANIFEST, "nvidia.ko"])
@pytest.mark.timeout(10)
def test_a_pipe_is_damage(tmp_path: Path, name: str) -> None:
    """To open a pipe would wait forever, and for no signal."""
    write_set(tmp_path, recipe(**ONE))
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(StoreError, match="is no file"):
        open_set(tmp_path)

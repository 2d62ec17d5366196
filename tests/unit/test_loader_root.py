"""The private module root, with the real depmod and modprobe on small modules."""

from __future__ import annotations

import lzma
import subprocess
from pathlib import Path
from typing import Optional, Sequence

import pytest
from elf_files import export, module
from trees import write_tree

from nvdriver_build.commands import SystemCommands
from nvdriver_build.elf import ModuleFacts, read_module
from nvdriver_build.errors import LoadError
from nvdriver_build.loader.root import ModuleRoot, prepare_root

RELEASE = "6.1.0-test"
COMMANDS = SystemCommands()


def small_module(name: str, depends: Sequence[str] = (), needs: Sequence[str] = ()) -> bytes:
    """A module that exports a symbol of its own name and needs those of others, as depmod sees it."""
    modinfo = (f"name={name}", f"depends={','.join(depends)}", f"vermagic={RELEASE} SMP ")
    file = module(modinfo=modinfo)
    export(file, {f"of_{name.replace('-', '_')}": 1})
    for other in needs or depends:
        file.symbol(f"of_{other.replace('-', '_')}")
    return file.build()


@pytest.fixture
def ours(tmp_path: Path) -> list[ModuleFacts]:
    """nvidia, nvidia-uvm and nvidia-modeset, which need drm and video of the kernel."""
    folder = write_tree(
        tmp_path / "set",
        {
            "nvidia.ko": small_module("nvidia", ["drm"]),
            "nvidia-uvm.ko": small_module("nvidia-uvm", ["nvidia"]),
            "nvidia-modeset.ko": small_module("nvidia-modeset", ["nvidia", "video"]),
        },
    )
    return [read_module(path, digest=False) for path in sorted(folder.iterdir())]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The kernel's own modules; video is built in, drm needs another one, and ipmi is a helper."""
    place = tmp_path / "host/lib/modules" / RELEASE
    write_tree(
        place,
        {
            "modules.builtin": "kernel/drivers/acpi/video.ko\nkernel/fs/ext4/ext4.ko\n",
            "modules.order": "kernel/drivers/gpu/drm/drm.ko\n",
            "modules.builtin.modinfo": b"",
            "kernel/drivers/gpu/drm/drm.ko.xz": lzma.compress(small_module("drm", ["backlight"])),
            "kernel/drivers/video/backlight.ko": small_module("backlight", ["video"]),
            "kernel/drivers/char/ipmi/ipmi_msghandler.ko": small_module("ipmi_msghandler"),
            "kernel/net/unrelated.ko": small_module("unrelated"),
        },
    )
    depmod(place)
    return place


def depmod(tree: Path) -> None:
    subprocess.run(("depmod", "-b", tree.parents[2], RELEASE), check=True)


def insmods(root: ModuleRoot, name: str) -> list[str]:
    """What the real modprobe would insert, in order."""
    argv = [*root.modprobe("--show-depends", name)]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    lines = [line.split(maxsplit=2) for line in shown.splitlines()]
    return [" ".join((Path(line[1]).name, *line[2:])).strip() for line in lines if line[0] == "insmod"]


def test_modprobe_finds_our_modules_and_what_they_need(
    ours: list[ModuleFacts], tree: Path, tmp_path: Path
) -> None:
    """In-tree dependencies of any depth come, in order; one that is built in needs nothing; options apply."""
    parameters = {"nvidia": ("NVreg_A=1", 'NVreg_B="x y"')}
    root = prepare_root(tmp_path / "run/root", RELEASE, ours, tree, COMMANDS, parameters=parameters)
    assert insmods(root, "nvidia_modeset") == [
        "backlight.ko",
        "drm.ko.xz",
        'nvidia.ko NVreg_A=1 NVreg_B="x y"',
        "nvidia-modeset.ko",
    ]
    assert insmods(root, "nvidia-uvm")[-1] == "nvidia-uvm.ko"
    assert root.build_ids == {"nvidia": None, "nvidia_uvm": None, "nvidia_modeset": None}


def test_root_holds_what_is_needed_and_nothing_else(
    ours: list[ModuleFacts], tree: Path, tmp_path: Path
) -> None:
    """Ours as copies, the kernel's as links, none that nobody needs: depmod of a whole tree takes seconds."""
    root = prepare_root(tmp_path / "root", RELEASE, ours, tree, COMMANDS)
    folder = root.path / "lib/modules" / RELEASE
    files = set(folder.rglob("*.ko*"))
    copies = {path for path in files if not path.is_symlink()}
    assert {path: path.read_bytes() for path in copies} == {
        folder / "updates" / Path(facts.path).name: Path(facts.path).read_bytes() for facts in ours
    }
    links = {str(path.relative_to(folder)): str(path.readlink()) for path in files - copies}
    assert links == {
        "kernel/drivers/gpu/drm/drm.ko.xz": str(tree / "kernel/drivers/gpu/drm/drm.ko.xz"),
        "kernel/drivers/video/backlight.ko": str(tree / "kernel/drivers/video/backlight.ko"),
        "kernel/drivers/char/ipmi/ipmi_msghandler.ko": str(
            tree / "kernel/drivers/char/ipmi/ipmi_msghandler.ko"
        ),
    }
    assert root.helpers == ("ipmi_msghandler",)


def test_modules_that_others_load(ours: list[ModuleFacts], tree: Path, tmp_path: Path) -> None:
    """An in-tree module whose place somebody else's has taken (MOFED's ib_core) does not come along."""
    root = prepare_root(tmp_path / "root", RELEASE, ours, tree, COMMANDS, others=("drm",))
    assert insmods(root, "nvidia") == ["nvidia.ko"]
    assert not list(root.path.rglob("drm.ko*"))


def test_configuration_of_the_machine_does_not_count(
    ours: list[ModuleFacts], tree: Path, tmp_path: Path
) -> None:
    """modprobe and depmod get folders of ours, so that an install line of the host's cannot stand in."""
    script = f'#!/bin/sh\necho "$*" >{tmp_path}/ran\nPATH={COMMANDS.path} exec depmod "$@"\n'
    write_tree(tmp_path, {"bin/depmod": script})
    (tmp_path / "bin/depmod").chmod(0o755)
    root = prepare_root(tmp_path / "root", RELEASE, ours, tree, SystemCommands(f"{tmp_path}/bin:/bin"))
    private = (tmp_path / "ran").read_text().split()[1]
    assert (tmp_path / "ran").read_text() == f"-b {private} -C {private}/depmod.d {RELEASE}\n"
    shown = subprocess.run([*root.modprobe("--showconfig")], capture_output=True, text=True, check=True)
    words = {line.split()[0] for line in shown.stdout.splitlines() if line and not line.startswith("#")}
    assert words <= {"options", "alias", "softdep"}
    assert [path.name for path in (root.path / "modprobe.d").iterdir()] == ["nvdriver-build.conf"]
    assert list((root.path / "depmod.d").iterdir()) == []


def test_tree_without_modules_dep_is_looked_through(
    ours: list[ModuleFacts], tree: Path, tmp_path: Path
) -> None:
    """A folder in which depmod never ran gives the same root, by the modules' own words."""
    for path in tree.glob("modules.dep*"):
        path.unlink()
    root = prepare_root(tmp_path / "root", RELEASE, ours, tree, COMMANDS)
    assert insmods(root, "nvidia") == ["backlight.ko", "drm.ko.xz", "nvidia.ko"]


@pytest.mark.parametrize("listed", [True, False], ids=["modules.dep", "no modules.dep"])
def test_missing_dependency_is_told(
    ours: list[ModuleFacts], tree: Path, tmp_path: Path, listed: bool
) -> None:
    """A module that is nowhere, or lacks another itself, is named with who needs it and the folder."""
    (tree / "kernel/drivers/video/backlight.ko").unlink()
    if not listed:
        (tree / "modules.dep").unlink()
    with pytest.raises(LoadError) as caught:
        prepare_root(tmp_path / "root", RELEASE, ours, tree, COMMANDS)
    assert caught.value.message == (
        f"missing in-tree dependency: nvidia needs the module drm, which {tree} does not have"
    )
    assert "kernel-modules" in (caught.value.hint or "")
    assert not (tmp_path / "root").exists()


def test_no_tree_at_all_is_told(ours: list[ModuleFacts], tmp_path: Path) -> None:
    """Without the host's folder the first in-tree dependency is missing."""
    with pytest.raises(
        LoadError, match=r"nvidia_modeset needs the module video, which /absent does not have"
    ):
        prepare_root(tmp_path / "root", RELEASE, ours, Path("/absent"), COMMANDS)


def test_set_that_needs_nothing_needs_no_tree(tmp_path: Path) -> None:
    """Modules without in-tree dependencies load on any kernel's folder."""
    write_tree(tmp_path, {"nvidia.ko": small_module("nvidia")})
    root = prepare_root(
        tmp_path / "root", RELEASE, [read_module(tmp_path / "nvidia.ko")], Path("/absent"), COMMANDS
    )
    assert insmods(root, "nvidia") == ["nvidia.ko"]


def test_old_root_is_replaced_whole(ours: list[ModuleFacts], tree: Path, tmp_path: Path) -> None:
    """What an earlier run left at the place is gone, and no private folder stays beside it."""
    place = tmp_path / "run/root"
    prepare_root(place, RELEASE, ours, tree, COMMANDS, parameters={"nvidia": ("NVreg_Old=1",)})
    write_tree(place, {"usr/lib/modules/5.0.0/updates/old.ko": "old"})
    root = prepare_root(place, RELEASE, ours[2:], tree, COMMANDS)
    assert list(root.build_ids) == ["nvidia"]
    assert [path.name for path in (place / "usr/lib/modules").iterdir()] == [RELEASE]
    assert insmods(root, "nvidia")[-1] == "nvidia.ko"
    assert [path.name for path in place.parent.iterdir()] == ["root"]


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (
            "#!/bin/sh\necho depmod: ERROR: no space >&2\nexit 1\n",
            r"depmod \(exit 1\) did not index .*no space",
        ),
        ("#!/bin/sh\n", r"depmod \(exit 0\) did not index nvidia_modeset, nvidia_uvm, nvidia"),
        (None, r"depmod: no such program"),
        ("#!/bin/sh\nkill -9 $$\n", r"depmod .*: killed by SIGKILL"),
    ],
    ids=["fails", "does nothing", "absent", "killed"],
)
def test_depmod_that_fails_is_told(
    ours: list[ModuleFacts], tree: Path, tmp_path: Path, program: Optional[str], words: str
) -> None:
    """A root that modprobe could not use is no root: the old one stays."""
    old = prepare_root(tmp_path / "root", RELEASE, ours, tree, COMMANDS)
    write_tree(tmp_path, {"bin/depmod": program} if program else {"bin/sh": ""})
    for path in (tmp_path / "bin").iterdir():
        path.chmod(0o755)
    with pytest.raises(LoadError, match=words):
        prepare_root(tmp_path / "root", RELEASE, ours, tree, SystemCommands(str(tmp_path / "bin")))
    assert insmods(old, "nvidia")[-1].startswith("nvidia.ko")


def test_full_disk_is_told(ours: list[ModuleFacts], tree: Path, small_disk: Path) -> None:
    """As an error of this stage, which the status has and the run ends with; what was there stays."""
    root = prepare_root(small_disk / "root", RELEASE, ours, tree, COMMANDS)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"), filler.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with pytest.raises(LoadError, match="No space left on device") as caught:
        prepare_root(small_disk / "root", RELEASE, ours, tree, COMMANDS)
    assert str(small_disk / "root") in caught.value.message
    assert caught.value.hint
    assert insmods(root, "nvidia")

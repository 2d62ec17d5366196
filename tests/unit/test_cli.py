"""The command line: exit codes, one JSON document and nothing else, no traceback ever."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

import pytest
from cli_runs import build_words, cli, document, environment
from fake_toolchain import MODULES, VERSION, FakeToolchain
from kernel_trees import RELEASE, SYMBOLS
from module_sets import put, recipe

from nvdriver_build.store import Store


@pytest.fixture
def rig(tmp_path: Path) -> FakeToolchain:
    return FakeToolchain.make(tmp_path)


COMMANDS = (
    "run",
    "build",
    "sign",
    "prebuild",
    "verify",
    "inspect",
    "doctor",
    "load",
    "unload",
    "status",
    "probe",
    "dtk-build",
    "peermem",
    "store",
    "fleet",
    "support-bundle",
)


def seconds(argv: Sequence[str], env: Mapping[str, str]) -> float:
    """The processor time of a program, which other programs disturb less than wall time."""
    before = os.times()
    subprocess.run(argv, env=dict(env), check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_help_answers_at_once(tmp_path: Path) -> None:
    """--help takes less than 0.3 s; on a slow machine, at most six times what Python alone takes."""
    env = environment(tmp_path)
    plain = min(seconds([sys.executable, "-c", "pass"], env) for _ in range(5))
    ours = min(seconds([sys.executable, "-m", "nvdriver_build", "--help"], env) for _ in range(5))
    assert ours < max(0.3, 6 * plain)


HEAVY = ("structlog", "rich", "psutil", "sh", "elftools", "cattrs", "zstandard", "asn1crypto", "tenacity")


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("probe", "liveness")])
def test_light_commands_import_nothing_heavy(tmp_path: Path, words: Sequence[str]) -> None:
    """Kubernetes calls probes every few seconds: none of the large libraries is imported for them."""
    code = (
        "import sys\nfrom nvdriver_build.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    )
    code += f"print([name for name in {HEAVY!r} if name in sys.modules])"
    argv = [sys.executable, "-c", code, *words]
    done = subprocess.run(argv, env=environment(tmp_path), stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_lists_every_command(tmp_path: Path) -> None:
    """Each command is in the help, each has a help of its own, and --version says the version."""
    done = cli(tmp_path, "--help")
    assert done.returncode == 0
    assert re.findall(r"^  ([a-z-]+)  ", done.stdout.partition("Commands:")[2], re.MULTILINE) == list(
        COMMANDS
    )
    assert cli(tmp_path, "--version").stdout.startswith("nvdriver-build, version ")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(tmp_path: Path, command: str) -> None:
    """`COMMAND --help` ends with 0 and says something."""
    done = cli(tmp_path, command, "--help")
    assert (done.returncode, "Usage:" in done.stdout, done.stderr) == (0, True, "")


@pytest.mark.parametrize(
    "words",
    [
        ["biuld"],
        ["--no-such"],
        ["build"],
        ["build", "--jobs", "0"],
        ["inspect"],
        ["probe", "x"],
        ["store", "x"],
    ],
)
def test_wrong_usage_ends_with_2(tmp_path: Path, words: List[str]) -> None:
    """Wrong usage is told on standard error, and with --json as a document too."""
    done = cli(tmp_path, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error:" in done.stderr
    error = document(cli(tmp_path, *words, "--json"))["error"]
    assert (error["code"], error["kind"]) == (2, "UsageError")


def test_a_setting_that_nobody_knows_ends_with_2(tmp_path: Path) -> None:
    """An unknown setting of ours stops every command that reads settings, and the near one is offered."""
    for words in (["status"], ["store", "list"], ["probe", "liveness"], ["doctor"]):
        done = cli(tmp_path, *words, NVDRIVER_STROE="/x")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "error: unknown setting NVDRIVER_STROE\nhint: did you mean NVDRIVER_STORE?\n"


def test_a_bad_setting_leaves_no_stale_readiness(tmp_path: Path) -> None:
    """What a killed `run` announced goes although the next one ends with 2 before its first stage."""
    stale = [tmp_path / "run/validations" / name for name in (".driver-daemons-status", ".driver-ctr-ready")]
    stale[0].parent.mkdir(parents=True)
    for path in stale:
        path.write_text("Ready\n")
    done = cli(tmp_path, "run", NVDRIVER_JOBS="many")
    assert done.returncode == 2 and "NVDRIVER_JOBS is 'many'" in done.stderr
    assert list(stale[0].parent.iterdir()) == []


def test_build_gives_one_document(rig: FakeToolchain) -> None:
    """`build --json` prints its document and nothing else on standard output; logs are on standard error."""
    done = cli(rig.root, *build_words(rig, "--json", "--log-format", "json"), path=rig.path)
    assert done.returncode == 0, done.stderr
    built = document(done)
    assert set(built) == {"schema", "key", "output", "modules", "seconds", "jobs", "from"}
    assert (built["from"], built["output"]) == ("built", str(rig.root / "out"))
    assert [Path(module["path"]).stem for module in built["modules"]] == list(MODULES)
    assert sorted(path.name for path in (rig.root / "out").iterdir()) == sorted(
        [*(f"{name}.ko" for name in MODULES), "manifest.json"]
    )
    assert all(json.loads(line)["event"] for line in done.stderr.splitlines())
    again = document(cli(rig.root, *build_words(rig, "--json"), path=rig.path))
    assert (again["from"], again["jobs"], again["key"]) == ("store", None, built["key"])


def test_build_tells_people(rig: FakeToolchain) -> None:
    """Without --json the result is a few lines, and the exit code 0."""
    done = cli(rig.root, *build_words(rig), path=rig.path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"driver {VERSION} (open) for {RELEASE} x86_64"
    assert done.stdout.count("exact") == len(MODULES)


BAD: Dict[str, Any] = {
    "no headers": (10, "HeadersError", lambda rig: ["--headers", rig.root / "none"]),
    "another release": (10, "HeadersMismatch", lambda rig: ["--kernel-release", "6.0.0"]),
    "no source": (11, "SourceError", lambda rig: ["--source", rig.root / "none"]),
    "not NVIDIA's": (11, "SourceError", lambda rig: ["--source", rig.headers]),
    "a damaged archive": (11, "SourceError", lambda rig: ["--source", rig.headers / "Makefile"]),
    "no such module": (11, "SourceError", lambda rig: ["--modules", "nvidia,nvidia-fs"]),
    "a full folder as output": (2, "UsageError", lambda rig: ["--output", rig.source]),
    "a file as output": (2, "UsageError", lambda rig: ["--output", rig.source / "Kbuild"]),
    "an output below a file": (17, "StoreError", lambda rig: ["--output", rig.source / "Kbuild" / "out"]),
    "an output that is a mount": (17, "StoreError", lambda rig: ["--output", "/dev/shm"]),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_input_ends_with_its_code(rig: FakeToolchain, case: str) -> None:
    """Each bad input has its exit code, kind, message and hint, on standard error and as a document."""
    code, kind, words = BAD[case]
    if case == "an output that is a mount" and list(Path("/dev/shm").iterdir()):
        code, kind = 2, "UsageError"
    done = cli(rig.root, *build_words(rig, *words(rig), "--json"), path=rig.path)
    error = document(done)["error"]
    assert set(error) == {"code", "kind", "message", "hint"}
    assert (done.returncode, error["code"], error["kind"]) == (code, code, kind)
    assert f"error: {error['message']}\nhint: {error['hint']}\n" in done.stderr
    assert error["hint"]
    assert rig.make_calls() == 0


def test_a_failed_build_ends_with_12(rig: FakeToolchain) -> None:
    """The first real error is the message, with file and line; the log is named and kept."""
    rig.program("make", "echo '/x/nvidia/nv.c:7:3: error: no such thing' >&2; exit 2")
    done = cli(rig.root, *build_words(rig, "--json"), path=rig.path)
    error = document(done)["error"]
    assert (done.returncode, error["kind"]) == (12, "BuildError")
    assert f"driver {VERSION} (open) for kernel {RELEASE} does not build" in error["message"]
    assert "nvidia/nv.c:7: no such thing" in error["message"]
    log = next(word.rstrip(";)") for word in error["hint"].split() if ".log" in word)
    assert "no such thing" in Path(log).read_text()
    assert not (rig.root / "out").exists()


def test_what_does_not_fit_ends_with_13(rig: FakeToolchain) -> None:
    """`build` refuses what it made if it does not fit; `verify` lists every finding and ends with 13."""
    rig.modules(crcs={**SYMBOLS, "printk": 0xBAD})
    assert document(cli(rig.root, *build_words(rig, "--json"), path=rig.path))["error"]["kind"] == "FitError"
    done = cli(rig.root, "verify", rig.root / "modules", "--headers", rig.headers, "--json")
    verdict = document(done)
    assert (done.returncode, verdict["fit"], len(verdict["modules"])) == (13, "unfit", len(MODULES))
    finding = verdict["modules"][0]["findings"][0]
    assert set(finding) == {"code", "message", "symbol", "wanted", "found"}
    assert (finding["code"], finding["symbol"]) == ("crc", "printk")
    rig.modules()
    done = cli(rig.root, "verify", rig.root / "modules", "--headers", rig.headers)
    assert (done.returncode, "exact" in done.stdout) == (0, True)


def test_what_is_no_module_ends_with_13(rig: FakeToolchain) -> None:
    """A file that is no module, and one whose name is no text, are told by name."""
    odd = rig.root / os.fsdecode(b"odd-\xff.ko")
    odd.write_bytes(b"rubbish")
    for path in (rig.source / "Kbuild", rig.root / "gone.ko", odd):
        done = cli(rig.root, "inspect", path, "--json")
        error = document(done)["error"]
        assert (done.returncode, error["kind"]) == (13, "ModuleFormatError")
        assert os.fsencode(path.name) in os.fsencode(error["message"])


def test_names_that_are_no_text_are_printed(rig: FakeToolchain) -> None:
    """A good module in a file with such a name is inspected, for people and as a document."""
    odd = rig.root / os.fsdecode(b"odd-\xff.ko")
    odd.write_bytes((rig.root / "modules" / "nvidia.ko").read_bytes())
    assert document(cli(rig.root, "inspect", odd, "--json"))["modules"][0]["path"] == str(odd)
    done = cli(rig.root, "inspect", odd)
    assert (done.returncode, "odd-\\udcff.ko" in done.stdout) == (0, True)


def test_a_full_store_ends_with_17(rig: FakeToolchain, small_disk: Path) -> None:
    """No space left in the store, in the output's folder: exit 17, and nothing half-made is visible."""
    (rig.root / "modules" / "nvidia.ko").write_bytes(
        (rig.root / "modules" / "nvidia.ko").read_bytes() + bytes(200_000)
    )
    done = cli(rig.root, *build_words(rig, "--json"), path=rig.path, NVDRIVER_STORE=str(small_disk / "s"))
    assert done.returncode in (12, 17), done.stderr
    assert "No space left" in document(done)["error"]["message"]
    (small_disk / "filler").write_bytes(bytes(120_000))
    done = cli(rig.root, *build_words(rig, "--output", small_disk / "out", "--json"), path=rig.path)
    assert (done.returncode, document(done)["error"]["kind"]) == (17, "StoreError")
    assert f"cannot write {small_disk}/out: No space left on device" in done.stderr
    assert not (small_disk / "out").exists()
    assert not list(small_disk.glob(".nvdriver*"))


def test_a_read_only_output_is_told_before_the_build(rig: FakeToolchain, read_only_disk: Path) -> None:
    """An output that cannot be written, and a store that cannot, end with 17 before make is started."""
    done = cli(rig.root, *build_words(rig, "--output", read_only_disk / "out", "--json"), path=rig.path)
    assert (done.returncode, document(done)["error"]["kind"]) == (17, "StoreError")
    done = cli(rig.root, *build_words(rig), path=rig.path, NVDRIVER_STORE=str(read_only_disk / "s"))
    assert (done.returncode, "Read-only file system" in done.stderr) == (17, True)
    assert rig.make_calls() == 0


def test_an_old_set_is_replaced(rig: FakeToolchain) -> None:
    """A set in the output's place is replaced by the new one, whole; another folder is not touched."""
    assert cli(rig.root, *build_words(rig, "--modules", "nvidia"), path=rig.path).returncode == 0
    assert cli(rig.root, *build_words(rig), path=rig.path).returncode == 0
    assert (rig.root / "out" / "nvidia-uvm.ko").exists()
    assert not [path.name for path in rig.root.iterdir() if path.name.startswith(".nvdriver")]


def test_store_commands(tmp_path: Path) -> None:
    """list, show, verify and prune: one document each, and exit 17 for a damaged set."""
    store = Store(tmp_path / "store")
    good, bad = put(store, recipe()), put(store, recipe(arch="arm64"))
    listed = document(cli(tmp_path, "store", "list", "--json"))["sets"]
    assert {entry["key"] for entry in listed} == {good.key, bad.key}
    assert document(cli(tmp_path, "store", "show", good.key[:8], "--json"))["manifest"]["key"] == good.key
    assert cli(tmp_path, "store", "show", "nothing").returncode == 2
    assert cli(tmp_path, "store", "verify").returncode == 0
    (bad.folder / "nvidia.ko").write_bytes(b"")
    done = cli(tmp_path, "store", "verify")
    assert (done.returncode, "error: 1 of 2 sets are damaged" in done.stderr) == (17, True)
    assert cli(tmp_path, "store", "show", bad.key).returncode == 17
    (bad.folder / "manifest.json").unlink()
    assert document(cli(tmp_path, "store", "prune", "--json"))["dropped"] == [bad.key]
    assert [entry.key for entry in store.entries()] == [good.key]

"""The documents say what the code does: names, codes, options, settings, fields, paths."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Set, Tuple, Type

import click
import pytest
from cluster_objects import GPU, K2, NFD, V1, V2, V3, daemonset, imagestream, node
from elf_files import appended, module, pkcs7
from fake_toolchain import VERMAGIC, FakeToolchain
from kernel_trees import SYMBOLS
from keys import make_identity

from nvdriver_build import errors
from nvdriver_build.cli import group
from nvdriver_build.config import _SETTINGS, PREFIX
from nvdriver_build.fleet.inventory import cluster_facts
from nvdriver_build.fleet.manifests import Driver
from nvdriver_build.fleet.plan import Plan, make_plan, plan_document, values
from nvdriver_build.readiness import Readiness, Status

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "nvdriver_build"
CONTRACTS = (ROOT / "docs/contracts.md").read_text()
TROUBLE = (ROOT / "docs/troubleshooting.md").read_text()
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
LOG_OPTIONS = {"--verbose", "--log-format"}
BY_DATA = {"symbols_needed", "symbols_exported", "modules", "timings", "facts"}
"""Objects whose fields are data, where they are objects."""

FAKE_STATUS = """
import sys
from pathlib import Path
from nvdriver_build.cli import driver, main
from nvdriver_build.loader.host import Host
host = Host(sys=Path(sys.argv.pop(1)))
driver.host_of = lambda config: host
main(sys.argv[1:])
"""


def section(text: str, title: str) -> str:
    """What stands under a heading, up to the next one of its rank or above."""
    head = re.search(rf"^(#+) {re.escape(title)}$", text, re.MULTILINE)
    assert head is not None, f"no heading {title}"
    rest = text[head.end() :]
    end = re.search(rf"^#{{1,{len(head[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def rows(text: str) -> Iterator[List[str]]:
    """The rows of tables, without those above the line of dashes; a `\\|` divides nothing."""
    head = True
    for line in text.splitlines():
        if not line.startswith("|"):
            head = True
        elif set(line) <= set("|-"):
            head = False
        elif not head:
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def code_spans(text: str) -> List[str]:
    return re.findall(r"`([^`]+)`", text)


def error_classes() -> List[Type[errors.NvdriverError]]:
    found = [errors.NvdriverError]
    for each in found:
        found += [cls for cls in each.__subclasses__() if cls.__module__ == errors.__name__]
    return found


def calls_of(name: str, files: Iterator[Path]) -> Set[str]:
    """The first argument of every call of `name`, where it is a plain string."""
    return {
        str(node.args[0].value)
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == name
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }


def commands() -> Iterator[Tuple[str, click.Command]]:
    """Every command by its words."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {part}", each) for part, each in command.commands.items())


def long_options(command: click.Command) -> Set[str]:
    options = [param for param in command.params if isinstance(param, click.Option)]
    return {word for option in options for word in option.opts if word.startswith("--")}


def test_every_exit_code_and_error_is_explained() -> None:
    """Each code has a heading that names the classes of errors.py that end with it, and no other has one."""
    told = re.findall(r"^## Exit (\d+): [^(]*\(([\w, ]+)\)$", TROUBLE, re.MULTILINE)
    explained = {(int(code), name) for code, names in told for name in names.split(", ")}
    assert explained == {(cls.exit_code, cls.__name__) for cls in error_classes()}
    listed = {
        int(code)
        for row in rows(section(CONTRACTS, "Exit codes"))
        for code in re.findall(r"^\d+|(?<=, )\d+", row[0])
    }
    assert listed == {0, 128, *(code for code, _ in explained)}


def test_every_setting_is_listed() -> None:
    """The table has the settings of config and no other; a default that it names is the default."""
    table = {row[0].strip("`"): row[1].strip("`") for row in rows(section(CONTRACTS, "Settings"))}
    assert set(table) == {setting.name for setting in _SETTINGS}
    for setting in _SETTINGS:
        default = table[setting.name]
        assert (None if default == "-" else setting.parse(setting.name, default)) == setting.default


def test_documents_name_no_other_setting() -> None:
    """A name with our prefix is one of config's, in every document."""
    known = {setting.name for setting in _SETTINGS}
    example = "NVDRIVER_STOR"  # the unknown setting of the example in troubleshooting.md
    for path in DOCUMENTS:
        named = set(re.findall(rf"\b{PREFIX}[A-Z0-9_]+", path.read_text()))
        assert named - known <= {example}, path


def test_every_command_and_option_is_listed() -> None:
    """Each command has a row with exactly its options; the ones for logs are said of all at once."""
    table = {row[0].strip("`"): row for row in rows(section(CONTRACTS, "Commands")) if len(row) == 3}
    found = dict(commands())
    listed: Dict[str, Set[str]] = {}
    for words, row in table.items():
        name = max((name for name in found if f"{words} ".startswith(f"{name} ")), key=len)
        listed[name] = {span for span in code_spans(row[1] + row[2]) if span.startswith("--")}
    assert set(listed) == set(found)
    for name, command in found.items():
        assert listed[name] == long_options(command) - LOG_OPTIONS, name
    without = {name for name, command in found.items() if not long_options(command) >= LOG_OPTIONS}
    assert without == {"probe", "store", "peermem", "peermem reload", "peermem probe", "fleet"}


def test_every_setting_of_fleet_is_listed() -> None:
    """The table has the fields of the driver's settings, in their order, and no other."""
    table = [row[0].strip("`") for row in rows(section(CONTRACTS, "The settings of fleet"))]
    assert table == list(Driver.__annotations__)


def test_every_state_and_rule_of_a_plan_is_explained() -> None:
    """The tables have those that the planner can give, and no other."""
    text = section(CONTRACTS, "`fleet plan --json`")
    told = {span for row in rows(text) for span in code_spans(row[0])}
    states = {value for name, value in vars(values).items() if name.isupper() and isinstance(value, str)}
    assert told == states


def test_every_state_and_reason_of_a_plan_has_an_answer() -> None:
    """upgrade.md has a row for each state and each reason of a plan, and no other; those of the rest of fleet
    are in some document.
    """
    text = (ROOT / "docs/upgrade.md").read_text()
    states, reasons = (
        {span for row in rows(section(text, title)) for span in code_spans(row[0])}
        for title in ("States", "Reasons")
    )
    rules = {values.OVERRIDE, values.TAG_RULE, values.LABEL_RULE}
    known = {value for name, value in vars(values).items() if name.isupper() and isinstance(value, str)}
    assert states == known - rules
    planned = [*(PACKAGE / "fleet/plan").glob("*.py"), *(PACKAGE / "fleet/inventory").glob("*.py")]
    planned.append(PACKAGE / "cli/fleet_sets.py")
    assert reasons == calls_of("Reason", iter(planned))
    told = set(re.findall(r"`(\w+)`", "".join(path.read_text() for path in DOCUMENTS)))
    assert calls_of("Reason", (PACKAGE / "fleet").rglob("*.py")) <= told


def test_every_finding_code_is_explained() -> None:
    """The table of codes has those that fit can give, and no other."""
    text = section(CONTRACTS, "What fits").partition("| code | finding |")[2]
    told = {row[0].strip("`") for row in rows("| code | finding |" + text)}
    assert told == calls_of("Finding", (PACKAGE / "fit").glob("*.py"))


def test_every_proof_is_explained() -> None:
    """The table of proofs has those that the code can give, and no other."""
    text = section(CONTRACTS, "Kernel headers and the Driver Toolkit")
    told = {row[0].strip("`") for row in rows(text)}
    assert told == calls_of("Proof", PACKAGE.rglob("*.py"))


def test_every_file_in_run_nvidia_is_listed() -> None:
    """The files that readiness writes are in the table."""
    listed = {row[0].strip("`") for row in rows(section(CONTRACTS, "Files in /run/nvidia"))}
    paths = [
        getattr(Readiness(), name) for name, kind in vars(Readiness).items() if isinstance(kind, property)
    ]
    files = {str(path.relative_to("/run/nvidia")) for path in paths if isinstance(path, Path)}
    assert files <= listed


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_what_documents_point_to_exists(path: Path) -> None:
    """Links lead to a file and a heading that are there; paths of the repository exist."""
    text = path.read_text()
    for link in re.findall(r"\]\(([^)]+)\)", text):
        file, _, anchor = link.partition("#")
        if "://" not in link:
            target = path.parent / file if file else path
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link
    for name in re.findall(
        r"`(?:\./)?((?:docs|tests|scripts|nvdriver_build|container|\.ci)/[\w./-]*)`", text
    ):
        assert (ROOT / name).exists(), name


def anchors(path: Path) -> Set[str]:
    """As GitHub makes them of headings: small letters, blanks to dashes, the rest of the signs left out."""
    heads = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def examples() -> Dict[str, Any]:
    """The JSON examples of contracts.md by the last heading above each."""
    found = {}
    for block in re.finditer(r"^```json\n(.*?)^```$", CONTRACTS, re.MULTILINE | re.DOTALL):
        title = re.findall(r"^#+ (.+)$", CONTRACTS[: block.start()], re.MULTILINE)[-1]
        found[title.strip("`")] = json.loads(block[1])
    return found


def differences(told: Any, found: Any, place: str) -> Iterator[str]:
    """Where the fields of an example are not those of the real document; null and empty tell nothing."""
    if told in (None, [], {}) or found in (None, [], {}):
        return
    if isinstance(told, list) and isinstance(found, list):
        yield from differences(told[0], found[0], f"{place}[]")
    elif isinstance(told, dict) and isinstance(found, dict):
        if place.rpartition(".")[2] not in BY_DATA:
            for name in sorted(told.keys() ^ found.keys()):
                yield f"{place}.{name} is only in the {'example' if name in told else 'program'}"
            for name in told.keys() & found.keys():
                yield from differences(told[name], found[name], f"{place}.{name}")
    elif _kind(told) != _kind(found):
        yield f"{place} is {told!r} in the example, {found!r} in the program"


def _kind(value: Any) -> type:
    return float if isinstance(value, int) and not isinstance(value, bool) else type(value)


def real_documents(root: Path) -> Dict[str, Any]:
    """What the commands really print, by the headings of contracts.md."""
    rig = FakeToolchain.make(root)
    environment = {
        "PATH": rig.path,
        "NVDRIVER_STORE": str(root / "store"),
        "NVDRIVER_RUN_DIR": str(root / "run"),
    }

    def run(*words: str, start: Tuple[str, ...] = ("-m", "nvdriver_build")) -> Any:
        argv = [sys.executable, *start, *words, "--json"]
        done = subprocess.run(argv, env=environment, stdout=subprocess.PIPE, check=False)
        return json.loads(done.stdout)

    identity = make_identity(root / "keys", "Build key")
    headers, output = ("--headers", str(rig.headers)), ("--output", str(root / "set"))
    documents = {
        "build --json": run("build", "--source", str(rig.source), *headers, *output),
        "prebuild --json": run("prebuild", "--source", str(rig.source), *headers),
        "sign --json": run(
            *("sign", str(root / "set"), "--output", str(root / "signed")),
            *("--cert", str(identity.file), "--key", str(identity.key)),
        ),
        "inspect --json": run("inspect", str(signed_module(root))),
        "verify --json": run("verify", str(misfit(root)), *headers),
        "status --json": run("status", start=("-c", FAKE_STATUS, str(loaded(root)))),
        "doctor --json": run("doctor"),
        "store list --json": run("store", "list"),
        "fleet plan --json": json.loads(json.dumps({"schema": 1, **plan_document(example_plan())})),
        "An error": run("build", "--source", "/nowhere", *headers, *output),
        "manifest.json": json.loads((root / "set/manifest.json").read_text()),
    }
    shown = run("store", "show", documents["build --json"]["key"])
    assert list(shown) == ["schema", "folder", "manifest"]
    assert run("store", "prune") == {"schema": 1, "dropped": []}
    return documents


def test_the_example_of_the_library_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It prints a finding for each reason why a set does not fit the headers."""
    misfit(tmp_path)
    example = re.findall(r"```python\n(.*?)```", section(CONTRACTS, "As a library"), re.DOTALL)[0]
    (tmp_path / "rig").mkdir()
    headers = str(FakeToolchain.make(tmp_path / "rig").headers)
    example = example.replace("/lib/modules/6.1.0-47-amd64/build", headers)
    exec(compile(example.replace('Path("set")', f"Path({str(tmp_path)!r})"), "contracts.md", "exec"), {})
    assert "misfit crc needs printk with CRC 0x00000001" in capsys.readouterr().out


def example_plan() -> Plan:
    """An upgrade half way, with something to tell at each place."""
    nodes = [node("a", labels={**GPU, f"{NFD}kernel-version.full": K2}), {}]
    return make_plan(cluster_facts(nodes, imagestream(V1, V2), daemonsets=[daemonset(V3, "old")]))


def signed_module(root: Path) -> Path:
    path = root / "signed.ko"
    signature = pkcs7({"common_name": "Build key"}, serial=31)
    path.write_bytes(module(crcs=SYMBOLS).build() + appended(signature))
    return path


def misfit(root: Path) -> Path:
    path = root / "misfit.ko"
    path.write_bytes(module(["name=misfit", f"vermagic={VERMAGIC}"], {**SYMBOLS, "printk": 1}).build())
    return path


def loaded(root: Path) -> Path:
    """A /sys with a live module, and the status of a `run` beside it."""
    folder = root / "sys/module/nvidia"
    folder.mkdir(parents=True)
    (folder / "initstate").write_text("live\n")
    error = errors.LoadError("what").document()
    progress = {"done": 1, "total": 2, "elapsed": 0.5}
    status = Status(
        stage="load", progress=progress, modules={"nvidia": None}, timings={"look": 0.1}, error=error
    )
    Readiness(root / "run").write_status(status)
    return root / "sys"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the rig's headers are for x86_64")
def test_json_examples_have_the_fields_of_the_program(tmp_path: Path) -> None:
    """Every example in contracts.md parses, and has the fields, of the kinds, that the command prints."""
    told, found = examples(), real_documents(tmp_path)
    assert set(told) == set(found)
    assert [text for name in told for text in differences(told[name], found[name], name)] == []

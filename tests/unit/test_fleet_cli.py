"""`fleet plan` and `fleet render`: from the files that `oc` writes to a table, JSON and YAML; and their
scale.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List

import pytest
from cli_runs import cli, environment
from cluster_objects import (
    V1,
    V2,
    V3,
    daemonset,
    image,
    imagestream,
    imagestreamtag,
    job,
    node,
    pool,
)
from hypothesis import given
from hypothesis import strategies as st
from keys import make_identity
from large_cluster import KERNELS, write_nodes

from nvdriver_build.errors import ClusterError
from nvdriver_build.fleet.reading import read_nodes

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="fleet needs Python 3.11 or later")
yaml = pytest.importorskip("yaml")
SLOW = 5
"""CI machines are shared: so much slower than the promise."""


def listed(*items: Any) -> Dict[str, Any]:
    """As `oc get -o json` writes several objects."""
    return {"apiVersion": "v1", "items": list(items), "kind": "List", "metadata": {"resourceVersion": ""}}


def written(root: Path, **documents: Any) -> List[str]:
    """A file for each of these documents, and the options that name them."""
    words = []
    for name, document in documents.items():
        path = root / f"{name}.json"
        path.write_text(json.dumps(document, indent=4))
        words += [f"--{name}", str(path)]
    return words


def test_plan_as_json(tmp_path: Path) -> None:
    """An upgrade half way, with everything that can be given."""
    words = written(
        tmp_path,
        nodes=listed(node("a"), node("b", V2)),
        imagestream=listed(imagestream(V1, V2, V3), imagestreamtag(V1), imagestreamtag(V3)),
        clusterversion=listed({"kind": "ClusterVersion", "status": {"desired": {"version": "4.19.1"}}}),
        pools=listed(pool("worker")),
        workloads=listed(daemonset("410.84.202207140725-0", "old"), job("unknown")),
    )
    plain = json.loads(cli(tmp_path, "fleet", "plan", "--json", *words).stdout)
    assert not plain["groups"][2]["prebuild"]  # there is nowhere to publish to
    settings = {"image": "quay.io/x@sha256:1", "registry": "registry.example.com/gpu", "sign_secret": "key"}
    settings["trust"] = make_identity(tmp_path, "builder").file.read_text()
    done = cli(tmp_path, "fleet", "plan", "--json", *words, *written(tmp_path, settings=settings))
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [each["rhcos_version"] for each in document["groups"]] == [V1, V2, V3]
    assert document["groups"][2]["prebuild"] and document["remove"] == ["old"]
    assert document["remove_jobs"] == ["prebuild-1"] and document["schema"] == 1


def test_plan_for_people(tmp_path: Path) -> None:
    """A line for each group, with its reasons and hints below."""
    words = written(tmp_path, nodes=listed(node("a", V2), node("b\x1b[2J")), imagestream=imagestream(V1))
    done = cli(tmp_path, "fleet", "plan", *words, "--toolkit", f"{V1}=quay.io/mine@sha256:1")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["version", "kernel", "arch", "nodes", "toolkit", "rule", "state"]
    assert any(line.startswith(V2) and line.endswith("no toolkit") for line in lines)
    assert any(line.strip().startswith("hint: --toolkit") for line in lines) and "\x1b" not in done.stdout
    nothing = cli(tmp_path, "fleet", "plan", *written(tmp_path, nodes=listed()))
    assert "no node with a GPU" in nothing.stdout and nothing.returncode == 0
    assert any("another nvdriver-build/os-version: 'fleet apply' or" in line for line in lines)


def test_render(tmp_path: Path) -> None:
    """YAML that can be applied, the same at each call; the ImageStream may be YAML as well."""
    words = written(tmp_path, nodes=listed(node("a")), settings={"image": "quay.io/x@sha256:1"})
    (tmp_path / "is.yaml").write_text(yaml.safe_dump(imagestream(V1, V2)))
    words += ["--imagestream", str(tmp_path / "is.yaml")]
    texts = {cli(tmp_path, "fleet", "render", *words).stdout for _ in range(2)}
    assert len(texts) == 1
    objects = list(yaml.safe_load_all(texts.pop()))
    sets = [each for each in objects if each["kind"] == "DaemonSet"]
    assert [each["spec"]["template"]["spec"]["containers"][1]["image"] for each in sets] == [
        image(V1),
        image(V2),
    ]
    other = cli(tmp_path, "fleet", "render", *words, "--image", "quay.io/y@sha256:2").stdout
    assert "quay.io/y@sha256:2" in other and "quay.io/x" not in other


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"env": {"NVDRIVER_STOR": "/x"}}, "unknown setting NVDRIVER_STOR"),
        ({"env": {"NVDRIVER_JOBS": "many"}}, "NVDRIVER_JOBS is 'many'"),
        ({"registry": "Registry.example.com"}, "no place in a registry"),
        ({"registry_ca": "-----BEGIN CERTIFICATE-----\n...\n"}, "registry_ca cannot be used"),
        ({"trust": "-----BEGIN CERTIFICATE-----\n...\n-----END CERTIFICATE-----\n"}, "trust cannot be used"),
        ({"namespace": "nvidia-gpu-operator"}, "namespace is nvidia-gpu-operator"),
        ({"parameters": {"nvidia.cnf": ""}}, "not read: nvidia.cnf"),
        ({"parameters": {"nvidia.conf": "a=1\noptions nvidia b=1"}}, "nvidia.conf, line 2"),
    ],
)
def test_settings_that_nodes_would_refuse(tmp_path: Path, given: Dict[str, Any], message: str) -> None:
    """What would end each pod, or be passed over there, is exit 2 before there is a pod."""
    words = written(tmp_path, nodes=listed(), settings={"image": "quay.io/x@sha256:1", **given})
    done = cli(tmp_path, "fleet", "render", *words)
    assert done.returncode == 2 and message in done.stderr and "hint: " in done.stderr


def test_long_texts_stay_readable(tmp_path: Path) -> None:
    """Certificates are written line by line, as they were given, and read back the same."""
    text = make_identity(tmp_path, "authority").file.read_text()
    words = written(tmp_path, nodes=listed(), settings={"image": "quay.io/x@sha256:1", "trust": text})
    done = cli(tmp_path, "fleet", "render", *words)
    (found,) = [each for each in yaml.safe_load_all(done.stdout) if each["kind"] == "ConfigMap"]
    assert found["data"]["trust.pem"] == text and "trust.pem: |\n    -----BEGIN" in done.stdout


def test_without_a_client(tmp_path: Path) -> None:
    """Where the extra is not installed a command that needs the API says so, and how to install it."""
    (tmp_path / "lightkube.py").write_text("raise ModuleNotFoundError('no', name='lightkube')")
    path = f"{tmp_path}:{environment(tmp_path)['PYTHONPATH']}"
    done = cli(tmp_path, "fleet", "status", PYTHONPATH=path)
    assert done.returncode == 2 and "fleet needs lightkube" in done.stderr and ".[fleet]" in done.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is no JSON: it ends too early"),
        ("[1]", "it is no JSON: '{' is expected, there is '['"),
        ("kind: List", "it is no JSON"),
        ('{"items": [{}', "it is no JSON: it ends too early"),
        ('{"items": [{}, {"kind": "Pod"}]}', "it has a Pod"),
        ('{"items": {}}', "it has no items"),
        ('{"kind": "Pod"}', "it has no items"),
        ("\xff", "it is no JSON"),
        ("[" * 100_000, "it is no JSON"),
        ('{"items": ' + "[" * 100_000, "it is no JSON"),
    ],
)
def test_no_nodes(tmp_path: Path, content: str, message: str) -> None:
    """A file that is no list of nodes is exit 20, with what it is and the command that writes it."""
    (tmp_path / "nodes").write_text(content, encoding="latin-1")
    done = cli(tmp_path, "fleet", "plan", "--json", "--nodes", tmp_path / "nodes")
    assert done.returncode == 20 and message in done.stderr
    assert "hint: 'oc get nodes -o json' writes it" in done.stderr
    assert json.loads(done.stdout)["error"]["kind"] == "ClusterError"


@pytest.mark.parametrize(
    ("option", "content", "code", "message"),
    [
        ("--imagestream", "{}", 20, "has no ImageStream or ImageStreamTag"),
        (
            "--imagestream",
            json.dumps({"kind": "ImageStream", "metadata": {"name": "cli"}}),
            20,
            "driver-toolkit",
        ),
        ("--imagestream", "a: [", 20, "is neither JSON nor YAML"),
        ("--imagestream", '{"a": ', 20, "cannot be read"),
        ("--pools", "kind: Pod", 20, "has no MachineConfigPool"),
        ("--workloads", "[]", 20, "has no DaemonSet or Job"),
        ("--settings", "a: [", 2, "is neither JSON nor YAML"),
        ("--settings", "imag: x", 2, "unknown setting 'imag'"),
    ],
)
def test_other_wrong_files(tmp_path: Path, option: str, content: str, code: int, message: str) -> None:
    """Facts of the cluster that are none are exit 20, settings exit 2; each with a hint."""
    (tmp_path / "wrong").write_text(content)
    words = written(tmp_path, nodes=listed(node("a")))
    done = cli(tmp_path, "fleet", "plan", *words, option, tmp_path / "wrong")
    assert done.returncode == code and message in done.stderr and "hint: " in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "--pools", "NODES"], "--nodes"),
        (["plan", "--diff", "--image", "x", "--nodes", "NODES"], "--diff compares"),
        (["plan", "--nodes", "/nowhere"], "No such file"),
        (["plan", "--nodes", "NODES", "--toolkit", "x"], "--toolkit is 'x'"),
        (["plan", "--nodes", "NODES", "--toolkit", "x=a b"], "--toolkit is 'x=a b'"),
        (["render", "--nodes", "NODES"], "no driver image is given"),
        (["render", "--nodes", "NODES", "--image", "a b"], "image is 'a b'"),
    ],
)
def test_wrong_usage(tmp_path: Path, words: List[str], message: str) -> None:
    """Exit 2."""
    (_, nodes) = written(tmp_path, nodes=listed(node("a")))
    done = cli(tmp_path, "fleet", *(nodes if word == "NODES" else word for word in words))
    assert done.returncode == 2 and message in done.stderr


def test_too_old_a_python(tmp_path: Path) -> None:
    """It is told; nothing else is tried."""
    words = "['fleet', 'plan', '--nodes', '/']"
    code = f"from nvdriver_build.cli import fleet, main; fleet.OLDEST = (9, 9); main({words})"
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "fleet needs Python 9.9 or later" in done.stderr


def test_without_pyyaml(tmp_path: Path) -> None:
    """JSON needs no PyYAML; what does says which extra brings it."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "yaml.py").write_text("raise ImportError('no yaml')")
    words = written(tmp_path, nodes=listed(node("a")), imagestream=imagestream(V1))
    path = f"{hidden}:{environment(tmp_path)['PYTHONPATH']}"
    assert cli(tmp_path, "fleet", "plan", *words, PYTHONPATH=path).returncode == 0
    done = cli(tmp_path, "fleet", "render", "--image", "x", *words, PYTHONPATH=path)
    assert done.returncode == 2 and "pip install '.[fleet]'" in done.stderr


@given(
    st.recursive(st.none() | st.floats(allow_nan=False) | st.text(), st.lists),
    st.integers(1, 40),
    st.booleans(),
)
def test_reading_by_chunks(
    tmp_path_factory: pytest.TempPathFactory, value: Any, size: int, first: bool
) -> None:
    """However a file is cut into chunks, what is read is what json.load reads."""
    items = [{"metadata": {"name": "a"}, "value": value}, {"n": 12345678}, {"s": '\u2028 " ] } \\'}]
    top = {"items": items, "kind": "List"} if first else {"kind": "List", "value": value, "items": items}
    path = tmp_path_factory.mktemp("chunks") / "nodes"
    path.write_text(
        json.dumps(top, ensure_ascii=False, indent=size % 3), encoding="utf-8", errors="surrogatepass"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nvdriver_build.fleet.reading._CHUNK", size)
        try:
            assert list(read_nodes(path)) == items
        except ClusterError as error:
            assert "surrogates" in error.message  # a lone surrogate is no UTF-8


def test_one_node(tmp_path: Path) -> None:
    """What `oc get node NAME -o json` writes is a cluster of one."""
    (_, path) = written(tmp_path, nodes=node("a"))
    assert [each["metadata"]["name"] for each in read_nodes(Path(path)) if isinstance(each, dict)] == ["a"]


COUNT = 10_000
MEASURE = """
import sys
from pathlib import Path
from nvdriver_build.cli import main
try:
    main(sys.argv[1:])
finally:  # of this program alone: ru_maxrss has that of whoever started it, too
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line for line in lines if line.startswith("VmHWM"))
    print(peak.split()[1], file=sys.stderr)
"""


@pytest.mark.once
def test_ten_thousand_nodes(tmp_path: Path) -> None:
    """10,000 nodes of 4 versions, as large as real ones: planned in bounded time and memory."""
    path = tmp_path / "nodes.json"
    write_nodes(path, COUNT)
    words = written(tmp_path, imagestream=imagestream(*KERNELS))
    began = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    argv = [sys.executable, "-c", MEASURE, "fleet", "plan", "--json", "--nodes", str(path), *words]
    done = subprocess.run(argv, env=environment(tmp_path), capture_output=True, text=True, check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    print(f"{time.monotonic() - began:.2f} s, {used:.2f} s of CPU, {path.stat().st_size >> 20} MiB of JSON")
    assert sum(each["nodes"] for each in json.loads(done.stdout)["groups"]) == COUNT
    assert int(done.stderr) < 200 << 10
    assert used < 2 * SLOW

"""`fleet watch`, `apply`, `status` against an API server on loopback, with a cluster living behind it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any, Iterator, List, Tuple

import pytest

pytest.importorskip("lightkube", reason="the extra 'fleet' is for Python 3.11 and later")

from api_server import Fault, once
from fleet_rig import IMAGE, Rig, listening, needs_ipv6, running, served, wait_for
from pytest_mock import MockerFixture
from upgrade_sim import RELEASES
from upgrade_world import DAEMONSETS, JOBS, NODES, SPACE

from nvdriver_build.fleet.controller.election import Deposed
from nvdriver_build.fleet.controller.rounds import Outcome, Rounds
from nvdriver_build.fleet.controller.watching import Telling
from nvdriver_build.fleet.names import LABEL, MANAGED_BY

OLD, NEW = RELEASES[0], RELEASES[1]
PUBLISHING = {"registry": "registry.example/nvidia", "sign_secret": "signing", "trust": "a certificate"}
STATUS = "nvdriver-build-status"
EVENTS = "v1/events"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with served(tmp_path) as made:
        yield made


def told(rig: Rig) -> dict[str, str]:
    """What the status ConfigMap holds."""
    with rig.server.lock:
        found = rig.server.store.objects.get("v1/configmaps", {}).get((SPACE, STATUS))
    return dict(found["data"]) if found else {"conditions": "[]", "plan": "{}"}


def conditions(rig: Rig) -> dict[str, str]:
    return {each["type"]: each["status"] for each in json.loads(told(rig)["conditions"])}


def events(rig: Rig) -> List[Tuple[str, str]]:
    with rig.server.lock:
        return [(each["type"], each["reason"]) for each in rig.server.store.list(EVENTS)]


def upgrade(rig: Rig) -> None:
    """The ImageStream is of the new release; nodes go there once it is prebuilt."""
    rig.do(lambda world: world.offer(NEW))
    wait_for(lambda: (NEW.kernel("x86_64"), "x86_64") in rig.world.registry)
    rig.do(lambda world: world.head_for(NEW))
    wait_for(lambda: rig.ready(NEW.version) and rig.versions() == [NEW.version])


def test_an_upgrade(rig: Rig) -> None:
    """Labels, DaemonSets and a prebuild follow an upgrade; nodes are listed once, each change is watched."""
    with running(rig, **PUBLISHING) as controller:
        wait_for(lambda: rig.ready(OLD.version))
        assert set(rig.labels().values()) == {OLD.version}
        assert conditions(rig)["Prebuilt"] == "Unknown"  # a script that waits has just begun the upgrade
        rig.do(lambda world: world.offer(NEW))
        wait_for(lambda: conditions(rig)["Prebuilt"] == "True")
        upgrade(rig)
        assert set(rig.labels().values()) == {NEW.version}
        wait_for(lambda: conditions(rig) == {"Blocked": "False", "Prebuilt": "Unknown", "Applied": "True"})
        assert controller.count("list", "nodes") == 1
        assert controller.count("patch", "nodes") == 6
    assert ("Normal", "Created") in events(rig)
    assert ("Normal", "PrebuildWanted") in events(rig)
    assert ("Normal", "Removed") in events(rig)


def test_nothing_is_prebuilt_where_nobody_can(rig: Rig) -> None:
    """Who waits for the modules of the coming version is told that there will be none."""
    with running(rig):
        rig.do(lambda world: world.offer(NEW))
        wait_for(lambda: "CannotPrebuild" in told(rig)["conditions"])
        assert conditions(rig)["Prebuilt"] == "False"
    assert f"{NEW.version}: can build" in fleet(rig, "status").stdout


def test_an_upgrade_in_trouble(rig: Rig) -> None:
    """410 as event and status, broken watches, 500, 429 and 409 in the midst of an upgrade change nothing."""
    server = rig.server
    with running(rig, **PUBLISHING):
        wait_for(lambda: rig.ready(OLD.version))
        server.faults += [
            once("WATCH", "nodes", Fault(error=410)),
            once("WATCH", "nodes", Fault(status=410)),
            once("WATCH", "daemonsets", Fault(drop=1)),
            once("WATCH", "nodes", Fault(status=500)),
            once("PATCH", "nodes", Fault(status=500), 2),
            once("PATCH", "daemonsets", Fault(status=429)),
            once("DELETE", "daemonsets", Fault(status=409)),
            once("GET", "pods", Fault(cut=True)),
            once("POST", "events", Fault(status=500), 2),
        ]
        server.drop_watches()
        rig.do(lambda world: world.offer(NEW))
        server.compact()
        upgrade(rig)
        wait_for(lambda: conditions(rig) == {"Blocked": "False", "Prebuilt": "Unknown", "Applied": "True"})


def test_only_parameters_of_ours_are_removed(rig: Rig) -> None:
    """An old driver's parameters go once no pod reads them; other ConfigMaps, ours and others', stay."""
    ours = {MANAGED_BY: "nvdriver-build"}
    for name, labels in (("parameters-old", ours), ("certificates", ours), ("parameters-theirs", {})):
        metadata = {"name": f"nvdriver-build-{name}", "namespace": SPACE, "labels": labels}
        rig.server.put("v1/configmaps", {"metadata": metadata, "data": {"nvidia.conf": ""}})
    with running(rig):
        wait_for(lambda: ("Normal", "Removed") in events(rig))
        wait_for(lambda: rig.ready(OLD.version))
    left = {name for _, name in rig.server.store.objects["v1/configmaps"]}
    assert left == {f"nvdriver-build-{name}" for name in ("certificates", "parameters-theirs", "status")}


def test_a_restart_plans_the_same(rig: Rig) -> None:
    """A controller that begins where another has ended has nothing to write."""
    with running(rig) as first:
        wait_for(lambda: rig.ready(OLD.version))
        wait_for(lambda: first.watcher.last is not None and first.watcher.last.done == ())
        wait_for(lambda: '"labels": []' in told(rig)["plan"])

    def kept() -> Any:
        with rig.server.lock:
            kinds = (NODES, DAEMONSETS, JOBS, "v1/configmaps", EVENTS)
            return {kind: {key: each["metadata"]["resourceVersion"] for key, each in
                           rig.server.store.objects.get(kind, {}).items()} for kind in kinds}  # fmt: skip

    before = kept()
    with running(rig, "two") as controller:
        wait_for(lambda: controller.watcher.last is not None)
    assert kept() == before


def test_one_leads(rig: Rig) -> None:
    """Of two controllers one writes; when it ends, the other goes on at once."""
    with running(rig, "two") as second:
        wait_for(lambda: second.watcher.election.leads)
        with running(rig, "one") as first:
            wait_for(lambda: first.watcher.view.synced)
            wait_for(lambda: rig.ready(OLD.version))
            assert not first.watcher.election.leads
            assert first.count("patch", "nodes") == 0
            second.end()
            rig.do(lambda world: world.offer(NEW))
            rig.do(lambda world: world.head_for(NEW))
            wait_for(lambda: rig.ready(NEW.version))
            assert first.watcher.election.leads


def test_a_round_that_was_broken_off_is_made_again(rig: Rig, mocker: MockerFixture) -> None:
    """Who loses the Lease in the middle and has it again begins anew, though nothing has changed."""
    rounds, broken = Telling.round, list[str]()

    def once(telling: Telling, made: Rounds) -> Outcome:
        if not broken:
            broken.append("off")
            raise Deposed("another one may lead")
        return rounds(telling, made)

    mocker.patch.object(Telling, "round", once)
    with running(rig):
        wait_for(lambda: rig.ready(OLD.version))


def test_what_is_not_ours_stays(rig: Rig) -> None:
    """A DaemonSet of somebody else that has our name stays as it is, and that is told."""
    theirs = {
        "metadata": {
            "name": "nvdriver-build-9-6-20260116-0",
            "namespace": SPACE,
            "labels": {MANAGED_BY: "somebody"},
            "annotations": {LABEL: "theirs"},
        },
        "spec": {"template": {"metadata": {}, "spec": {"nodeSelector": {"no": "node"}, "containers": []}}},
    }
    before = rig.server.put(DAEMONSETS, theirs)
    with running(rig):
        wait_for(lambda: conditions(rig).get("Applied") == "False")
        assert ("Warning", "WriteFailed") in events(rig)
        rig.do(lambda world: world.offer(NEW))
        rig.do(lambda world: world.head_for(NEW))
        wait_for(lambda: rig.ready(NEW.version))  # what cannot be written holds nothing else up
    with rig.server.lock:
        assert rig.server.store.get(DAEMONSETS, SPACE, before["metadata"]["name"])["spec"] == before["spec"]


def test_changes_of_others_are_taken_back(rig: Rig) -> None:
    """A person's change of our DaemonSet and of our label is taken back; a heartbeat causes no write."""
    with running(rig) as controller:
        wait_for(lambda: rig.ready(OLD.version) and conditions(rig).get("Applied") == "True")
        name = "nvdriver-build-9-6-20260116-0"
        change = {"spec": {"template": {"spec": {"hostPID": False}}}}
        rig.do(lambda world: world.store.merge(DAEMONSETS, SPACE, name, change))
        wait_for(lambda: rig.do(lambda world: world.daemonsets()[0]["spec"]["template"]["spec"]["hostPID"]))
        wrong = {"metadata": {"labels": {LABEL: "9.9.9"}}}
        rig.do(lambda world: world.store.merge(NODES, "", "node-0", wrong))
        wait_for(lambda: rig.labels()["node-0"] == OLD.version)
        wait_for(lambda: rig.ready(OLD.version))
        writes = controller.count("patch", "nodes")
        heartbeat = {"status": {"images": [{"names": ["an image"]}]}}
        rig.do(lambda world: world.store.merge(NODES, "", "node-1", heartbeat))
        assert controller.count("patch", "nodes") == writes


def test_a_cluster_that_is_not_openshifts(rig: Rig) -> None:
    """Without ImageStreams, pools and ClusterVersion the groups say what is missing, and labels are right."""
    rig.server.unknown += ["imagestreams", "imagestreamtags", "machineconfigpools", "clusterversions"]
    with running(rig):
        wait_for(lambda: set(rig.labels().values()) == {OLD.version})
        wait_for(lambda: conditions(rig).get("Blocked") == "True")
    assert ("Warning", "NoToolkit") in events(rig)


def fleet(rig: Rig, *words: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "nvdriver_build", "fleet", *words, "--kubeconfig", str(rig.kubeconfig)]
    return subprocess.run(program, capture_output=True, text=True, timeout=60)


def test_apply_status_and_plan(rig: Rig) -> None:
    """`plan --diff` shows what `apply` then does; `status` shows it; a second `apply` changes nothing."""
    settings = rig.folder / "settings.yaml"
    settings.write_text(f"image: {IMAGE}\nenv_secret: settings\n")
    rig.server.put(
        "v1/secrets", {"metadata": {"name": "settings", "namespace": SPACE}, "data": {"A": "eA=="}}
    )
    shown = fleet(rig, "plan", "--diff", "--settings", str(settings))
    assert "+++ DaemonSet/nvdriver-build-9-6-20260116-0 (wanted)" in shown.stdout, shown.stderr
    assert "Node/node-0: label 9.6.20260116-0" in shown.stdout
    assert fleet(rig, "status").returncode == 20
    applied = fleet(rig, "apply", "--settings", str(settings))
    assert applied.returncode == 0, applied.stderr
    wait_for(lambda: rig.ready(OLD.version))
    assert fleet(rig, "plan", "--diff", "--settings", str(settings)).stdout == ""
    status = fleet(rig, "status")
    assert "3 of 3" in status.stdout, status.stdout + status.stderr
    document = json.loads(fleet(rig, "status", "--json").stdout)
    assert [(each["rhcos_version"], each["ready"]) for each in document["groups"]] == [(OLD.version, 3)]
    planned = json.loads(fleet(rig, "plan", "--json").stdout)
    assert [each["nodes"] for each in planned["groups"]] == [3]


def test_what_secrets_hold_is_no_difference(rig: Rig) -> None:
    """`plan --diff` knows what the driver's pods read as `apply` does."""
    secret = {"metadata": {"name": "more", "namespace": SPACE}, "data": {"NAME": "dmFsdWU="}}
    rig.server.put("v1/secrets", secret)
    settings = rig.folder / "settings.yaml"
    settings.write_text(f"image: {IMAGE}\nenv_secret: more\n")
    assert fleet(rig, "apply", "--settings", str(settings)).returncode == 0
    assert fleet(rig, "plan", "--diff", "--settings", str(settings)).stdout == ""


@pytest.mark.parametrize("listen", ["127.0.0.1:0", pytest.param("[::1]:0", marks=needs_ipv6)])
def test_watch_as_a_program(rig: Rig, listen: str) -> None:
    """`fleet watch` answers health and metrics, and a SIGTERM ends it cleanly, its Lease let go."""
    program = [
        sys.executable,
        "-m",
        "nvdriver_build",
        "fleet",
        "watch",
        "--image",
        IMAGE,
        "--listen",
        listen,
    ]
    environment = {**os.environ, "KUBECONFIG": str(rig.kubeconfig)}
    process = subprocess.Popen(program, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: rig.ready(OLD.version))
        address = listening(process.pid)
        for path, text in (
            ("healthz", b"ok"),
            ("readyz", b"ok"),
            ("metrics", b"nvdriver_fleet_rounds_total"),
        ):
            assert text in urllib.request.urlopen(f"http://{address}/{path}", timeout=10).read()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
    finally:
        process.kill()
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    with rig.server.lock:
        lease = rig.server.store.get("coordination.k8s.io/v1/leases", SPACE, "nvdriver-build-fleet")
    assert lease["spec"]["holderIdentity"] is None

"""The upgrade simulator: the shipped planner and controller against a `World`, by a script.

Properties are checked at every tick: `run(script)` raises AssertionError where one does not hold.
"""

from __future__ import annotations

import contextlib
import datetime
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Set, Tuple

from api_store import Refusal
from attrs import define, evolve, field
from memory_api import MemoryApi
from upgrade_works import PLUGIN
from upgrade_world import (
    CHANGES,
    CONFIG_MAPS,
    DAEMONSETS,
    END,
    LOAD,
    NODES,
    PODS,
    PREBUILD,
    SPACE,
    START,
    Machine,
    Release,
    World,
)

from nvdriver_build.errors import ClusterError
from nvdriver_build.fleet.controller.api import Document, Unreachable, refusal
from nvdriver_build.fleet.controller.election import utc
from nvdriver_build.fleet.controller.following import followers
from nvdriver_build.fleet.controller.kinds import POD, Kind
from nvdriver_build.fleet.controller.rounds import Outcome, Rounds
from nvdriver_build.fleet.controller.view import View
from nvdriver_build.fleet.manifests import Driver
from nvdriver_build.fleet.names import LABEL, UPGRADE
from nvdriver_build.fleet.plan import Plan
from nvdriver_build.fleet.reasons import Reason
from nvdriver_build.fleet.upgrade import FAILED, REPLACING, State, read_state

RELEASES = tuple(Release(number, number % 3) for number in range(1, 6))
CALM = 3
"""Ticks without trouble after which everything has to be as it should."""
SETTLE = 60
SLACK = START + LOAD + END + 4
SECONDS = 5.0
"""Of a tick, for time limits."""
DRAIN, READY = 60, 120
EACH, HELP = 40, 20
"""Ticks that a node may take for its new driver, and between a person's looks."""
START_OF_TIME = datetime.datetime(2026, 11, 26, tzinfo=datetime.timezone.utc)
MASTER = "nvidia.com/gpu-driver-upgrade-enabled"
KINDS = ("nodes", "daemonsets", "imagestreams", "pods", "jobs", "configmaps")


class Step(NamedTuple):
    """After `wait` ticks: what a script does, to which node or release, for how long or with what."""

    wait: int
    what: str
    which: int = 0
    how: int = 0


class Script(NamedTuple):
    """A cluster and what happens in it."""

    nodes: Tuple[Tuple[str, str], ...] = (("x86_64", "fresh"),)
    """(architecture, NFD) of each."""
    steps: Tuple[Step, ...] = ()
    at_once: int = 1
    down_for: int = 3
    tell_lag: int = 0
    registry: bool = True
    asked: bool = True
    """Whether the planner can ask the registry."""
    works: int = 0
    """Pods that use a GPU."""
    plugin: bool = False
    most: int = 1
    """Nodes that may be unavailable."""


class Crash(BaseException):
    """The controller is killed."""


class Registry:
    """`Sets` of a world."""

    asks = True

    def __init__(self, world: World) -> None:
        self.world = world

    def has(self, kernel: str, arch: str, built: bool = False) -> Optional[bool]:
        return (kernel, arch) in self.world.registry

    def reasons(self) -> Tuple[Reason, ...]:
        return ()


class WatchedApi(MemoryApi):
    """Sees to it that no DaemonSet is deleted under a pod, and that only what is ours is written."""

    world: World

    def merge(self, kind: Kind, name: str, change: Document, namespace: Optional[str] = None) -> Document:
        if kind.plural == "nodes":
            return self._do("patch", kind, lambda: self._change(name, change))
        return super().merge(kind, name, change, namespace)

    def _change(self, name: str, change: Document) -> Document:
        """A node that is begun is free, and only a cordon of ours is taken away."""
        before = self.store.get(NODES, "", name)
        after = self.store.merge(NODES, "", name, change)
        old, new = state_of(before), state_of(after)
        if new is not None and old is None:
            assert not before["spec"].get("unschedulable"), f"{name} was cordoned by another"
            assert MASTER not in before["metadata"]["annotations"], f"{name} has another master"
        if before["spec"].get("unschedulable") and not after["spec"].get("unschedulable"):
            assert old is not None and old.cordoned, f"{name} is uncordoned, not by who cordoned it"
        return after

    def evict(self, name: str, namespace: str, uid: Optional[str] = None) -> None:
        self._do("evict", POD, lambda: self.world.works.evict(name, uid))

    def delete(
        self, kind: Kind, name: str, namespace: Optional[str] = None, like: Optional[Document] = None
    ) -> None:
        if kind.plural == "daemonsets":
            under = [pod.name for pod in self.world.pods.values() if pod.daemonset == name]
            assert not under, f"the DaemonSet {name} is deleted under {under}"
        if kind.plural == "pods":
            self._do("delete", kind, lambda: self._end_pod(name, like))
            return
        super().delete(kind, name, namespace, like)

    def _end_pod(self, name: str, like: Optional[Document]) -> None:
        pod, there = self.world.pods.get(name), self.store.get(PODS, SPACE, name)
        if like and like["metadata"]["resourceVersion"] != there["metadata"]["resourceVersion"]:
            raise Refusal(409, "Conflict", f"{name} is another one now")
        if pod is not None and pod.up:
            users = self.world.works.on(pod.node)
            assert not users, f"the driver's pod {name} is deleted under {users}"
            state = state_of(self.store.get(NODES, "", pod.node))
            drained = state is not None and state.stage == REPLACING
            assert drained or not pod_started(there), f"{name} is deleted while its driver is up"
        self.world.end(name)


def pod_started(pod: Document) -> bool:
    """Whether its driver is up, as its kubelet has it."""
    return any(each["started"] for each in pod["status"]["containerStatuses"])


def state_of(node: Document) -> Optional[State]:
    """How far a node's driver is on its way."""
    return read_state(node["metadata"].get("annotations", {}).get(UPGRADE))


@define
class Controller:
    """The shipped parts of `fleet watch`, without its threads: one life of it."""

    api: MemoryApi
    driver: Driver
    sets: Optional[Registry]
    wall: Callable[[], datetime.datetime] = utc
    view: View = field(init=False)
    rounds: Rounds = field(init=False)
    followers: Tuple[Any, ...] = field(init=False)
    due: bool = field(init=False, default=True)
    failed: bool = field(init=False, default=False)
    plan: Optional[Plan] = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self.view = View(self.driver.name, self._wake)
        self.rounds = Rounds(self.api, self.view, self.driver, sets=self.sets, wall=self.wall)
        self.followers = followers(self.api, self.view, self.driver.namespace)

    def _wake(self) -> None:
        self.due = True

    def step(self) -> Optional[Outcome]:
        """Follow, and make a round where something changed; what failed is tried again at the next."""
        self.failed = False
        for each in self.followers:
            try:
                each.once()
            except ClusterError:
                self.failed = True
        if not self.view.synced or not self.due:
            return None
        self.due = False
        outcome = self.rounds.run()
        self.plan = outcome.plan
        self.due = self.due or outcome.again
        if outcome.failed:
            self.failed = self.due = True
        return outcome


@define
class Simulation:
    """One script, run."""

    script: Script
    world: World = field(init=False)
    api: WatchedApi = field(init=False)
    driver: Driver = field(init=False)
    controller: Controller = field(init=False)
    troubled: int = -100
    """The last tick with trouble."""
    trouble_until: int = -1
    fault: Optional[Callable[[str, str], Optional[BaseException]]] = None
    blind_until: Dict[str, int] = field(factory=dict)
    known_since: Dict[Release, int] = field(factory=dict)
    """Since when a release is known to be coming, in which time prebuilds of it can go well."""
    kinds: Tuple[Any, ...] = ()
    seen_loads: int = 0
    newest: Release = RELEASES[0]
    late: List[Tuple[int, Release, int]] = field(factory=list)
    standby: Optional[Controller] = None

    def __attrs_post_init__(self) -> None:
        script = self.script
        self.world = World(
            RELEASES, at_once=script.at_once, down_for=script.down_for, tell_lag=script.tell_lag
        )
        given: Dict[str, Any] = (
            {"registry": "registry.example/nvidia", "sign_secret": "signing", "trust": "a certificate"}
            if script.registry
            else {}
        )
        upgrade = {"max_unavailable": script.most, "drain_seconds": DRAIN, "ready_seconds": READY}
        self.driver = Driver(
            image="quay.io/example/driver@sha256:0", namespace=SPACE, upgrade=upgrade, **given
        )
        self.world.works.wanted, self.world.works.plugin = script.works, script.plugin
        self.world.works.budget(1)
        self.api = WatchedApi(self.world.store)
        self.api.world = self.world
        self.api.fault = self._fault
        for number, (arch, nfd) in enumerate(script.nodes):
            self.world.add(Machine(f"node-{number}", arch, RELEASES[0], nfd))
        self.world.offer(RELEASES[0])
        self._restart()

    def run(self) -> Simulation:
        """The whole script, then until all is quiet, then the proof that it stays so."""
        for step in self.script.steps:
            for _ in range(step.wait):
                self.tick()
            self._do(step)
        self._quiet()
        self._settle()
        self._check_end()
        self._check_still()
        return self

    def tick(self) -> None:
        world = self.world
        for when, release, how in [each for each in self.late if each[0] <= world.now]:
            self.late.remove((when, release, how))
            self._offer(release, how)
        for machine in world.machines.values():
            if machine.fell is not None and (world.now - self.troubled <= 1 or self.driver.env):
                machine.disturbed = True
        before = {name for name, each in world.machines.items() if each.down}
        self._see_what_is_coming()
        world.tick()
        self._check_prebuilt(before)
        self._open_eyes()
        try:
            self.controller.step()
        except Crash:
            self._restart()
            self._trouble(1)
        if self.controller.failed:
            self._trouble(0)
        self._check_tick()

    # what a script does

    def _do(self, step: Step) -> None:
        names = sorted(self.world.machines)
        release = RELEASES[step.which % len(RELEASES)]
        name = names[step.which % len(names)] if names else ""
        getattr(self, f"_do_{step.what}")(step, release, name)

    def _do_upgrade(self, step: Step, release: Release, _: str) -> None:
        """`how`: ticks until its tag comes, and of which kind it is."""
        lag, kind = divmod(step.how, 6)
        self.newest = release
        self.late.append((self.world.now + lag, release, kind))
        self.world.head_for(release)

    def _do_announce(self, step: Step, release: Release, _: str) -> None:
        """The ImageStream is of the next release; nodes come later."""
        self.newest = release
        self._offer(release, step.how % 6)

    def _do_reach(self, step: Step, release: Release, _: str) -> None:
        """The nodes go where the ImageStream is."""
        self.world.head_for(self.newest)

    def _offer(self, release: Release, kind: int) -> None:
        if kind in (0, 1):
            self.world.offer(release)
        elif kind == 2:  # its labels are not known
            self.world.offer(release, labels=False)
        elif kind == 3:  # it has no image
            self.world.offer(release, None)
        elif kind == 4:  # the image is of another release
            self.world.offer(release, RELEASES[release.number % len(RELEASES)].image)
        else:  # never, but `latest` is
            self.world.stream["latest"] = release.image
            self.world._write_stream()

    def _do_mend(self, step: Step, release: Release, _: str) -> None:
        """All tags that were wrong are right now."""
        for each in [self.newest, *{machine.release for machine in self.world.machines.values()}]:
            self.world.offer(each, latest=each == self.newest)

    def _do_retract(self, step: Step, release: Release, _: str) -> None:
        self.world.retract(release.version)

    def _do_swap(self, step: Step, release: Release, _: str) -> None:
        """The tags of two releases have each other's image, and what is in them is known; nodes go there."""
        for one, other in ((release, self.newest), (self.newest, release)):
            self.world.offer(one, other.image, latest=False)
        self.world.head_for(release)

    def _do_pause(self, step: Step, *_: object) -> None:
        self.world.paused = not self.world.paused

    def _do_reboot(self, step: Step, _: Release, name: str) -> None:
        self.world.reboot(name)

    def _do_add(self, step: Step, release: Release, _: str) -> None:
        arch, nfd = ("x86_64", "arm64")[step.how % 2], ("fresh", "late", "stale", "none")[step.how % 4]
        name = f"node-{self.world.now + 100}"
        if len(self.world.machines) < 8 and name not in self.world.machines:
            self.world.add(Machine(name, arch, self.newest, nfd))

    def _do_remove(self, step: Step, _: Release, name: str) -> None:
        if len(self.world.machines) > 1:
            self.world.remove(name)

    def _do_stale(self, step: Step, release: Release, name: str) -> None:
        """NFD on a node says something old from now on, or stops, or works again."""
        self.world.machines[name].nfd = ("stale", "late", "fresh")[step.how % 3]

    def _do_mislabel(self, step: Step, release: Release, name: str) -> None:
        """A person writes our label."""
        self.world.store.merge(NODES, "", name, {"metadata": {"labels": {LABEL: release.version}}})

    def _do_meddle(self, step: Step, release: Release, _: str) -> None:
        """A person deletes one of our DaemonSets, pods going on, or changes its toolkit."""
        for each in self.world.daemonsets()[: 1 + step.which % 2]:
            if step.how % 2:
                self.world.store.delete(DAEMONSETS, SPACE, each["metadata"]["name"])
            else:
                self.world.store.merge(
                    DAEMONSETS,
                    SPACE,
                    each["metadata"]["name"],
                    {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": step.which + 1}}}},
                )
        self._trouble(2)

    def _do_driver(self, step: Step, *_: object) -> None:
        """Another driver, maybe one that does not become ready, or one from before."""
        value = str(step.which % 3)
        if step.how % 4 == 3:
            self.world.bad.add(value)
        parameters = {"nvidia.conf": f"NVreg_ResmanDebugLevel={value}\n"}
        self.driver = evolve(self.driver, env={CHANGES: value}, parameters=parameters)
        self._restart()

    def _do_cordon(self, step: Step, _: Release, name: str) -> None:
        """A person cordons a node that is not, and that we do not change; or takes that away."""
        if step.how % 3 == 2:
            self._uncordon()
        elif not self._marked(name) and not self.world.store.get(NODES, "", name)["spec"]:
            self.world.persons.add(name)
            self.world.cordon(name, True)

    def _do_slow(self, step: Step, _: Release, name: str) -> None:
        """The probes of a node's driver time out for a while, or its kubelet starts again; it runs, and is
        used.
        """
        for pod in self.world.pods.values():
            if pod.node == name:
                pod.late, pod.anew = 2 + step.how, step.how % 2 == 1

    def _do_budget(self, step: Step, *_: object) -> None:
        """Nothing may be evicted any more, or it may again."""
        self.world.works.budget(step.how % 2)

    def _do_bare(self, step: Step, _: Release, name: str) -> None:
        if step.how % 3 == 2:
            self.world.works.free()
        else:
            self.world.works.bare(name)

    def _do_master(self, step: Step, _: Release, name: str) -> None:
        """The GPU Operator's upgrade controller takes a node, or leaves it."""
        value = "true" if step.how % 2 else None
        self.world.store.merge(NODES, "", name, {"metadata": {"annotations": {MASTER: value}}})

    def _do_standby(self, step: Step, *_: object) -> None:
        """Another controller reads everything, then takes over when the view of it is old."""
        if self.standby is None:
            self.standby = self._controller()
            for each in self.standby.followers:
                with contextlib.suppress(ClusterError):
                    each.once()
        else:
            for plural in ("nodes", "pods"):
                self.blind_until[plural] = self.world.now + 1 + step.how % 4
                self.api.blind.add(plural)
            self.controller, self.standby = self.standby, None
            self._trouble(2 + step.how % 4)

    def _do_jobs_fail(self, step: Step, *_: object) -> None:
        self.world.failing_jobs = not self.world.failing_jobs

    def _do_unpullable(self, step: Step, release: Release, _: str) -> None:
        self.world.unpullable ^= {release.image}

    def _do_fail(self, step: Step, *_: object) -> None:
        """The API fails for some ticks: every request, or writes, or one kind; before or after it is done."""
        kind = KINDS[step.which % len(KINDS)]
        errors: Tuple[Callable[[], BaseException], ...] = (
            lambda: refusal("a test", 500, "internal error"),
            lambda: refusal("a test", 429, "too many requests", 1.0),
            lambda: Unreachable("a test"),
            lambda: refusal("a test", 409, "conflict"),
        )
        error, after = errors[step.how % 4], (step.how // 4) % 2 == 1

        def fault(verb: str, plural: str) -> Optional[BaseException]:
            done = verb.endswith(" done")
            wanted = plural == kind or step.which % 7 == 6
            return error() if wanted and done == after else None

        self.fault, self.trouble_until = fault, self.world.now + 1 + step.how % 5
        self._trouble(2 + step.how % 5)

    def _do_gone(self, step: Step, *_: object) -> None:
        """The API forgets old versions while watches are behind."""
        for plural in KINDS:
            self.blind_until[plural] = self.world.now + 1 + step.how % 2
        self.api.blind = set(KINDS)
        self.world.store.version += 1
        self._trouble(3)
        self.world.store.compact()

    def _do_blind(self, step: Step, *_: object) -> None:
        """A watch hangs for some ticks: the cache of one kind is old."""
        plural = KINDS[step.which % len(KINDS)]
        self.blind_until[plural] = self.world.now + 1 + step.how % 6
        self.api.blind.add(plural)
        self._trouble(2 + step.how % 6)

    def _do_lag(self, step: Step, *_: object) -> None:
        """The DaemonSet controller is behind with its status, or not any more."""
        self.world.lag_status = not self.world.lag_status

    def _do_restart(self, step: Step, *_: object) -> None:
        self._restart()

    def _do_crash(self, step: Step, *_: object) -> None:
        """The controller is killed at its next write, or a later one; before or after it is done."""
        left, after = [step.which % 6], step.how % 2 == 1

        def fault(verb: str, plural: str) -> Optional[BaseException]:
            if verb.split()[0] in ("get", "list", "watch") or verb.endswith(" done") != after:
                return None
            left[0] -= 1
            if left[0] < 0:
                self.fault = None
                return Crash()
            return None

        self.fault, self.trouble_until = fault, self.world.now + 1000

    # trouble

    def _restart(self) -> None:
        self.controller, self.standby = self._controller(), None

    def _controller(self) -> Controller:
        sets = Registry(self.world) if self.script.asked else None
        return Controller(self.api, self.driver, sets, self._wall)

    def _wall(self) -> datetime.datetime:
        return START_OF_TIME + datetime.timedelta(seconds=SECONDS * self.world.now)

    def _trouble(self, ticks: int) -> None:
        self.troubled = max(self.troubled, self.world.now + ticks)

    def _fault(self, verb: str, plural: str) -> Optional[BaseException]:
        if self.fault is None or self.world.now > self.trouble_until:
            return None
        return self.fault(verb, plural)

    def _open_eyes(self) -> None:
        for plural in [each for each, until in self.blind_until.items() if until < self.world.now]:
            del self.blind_until[plural]
            self.api.blind.discard(plural)

    def _quiet(self) -> None:
        self.fault, self.blind_until, self.api.blind = None, {}, set()
        self.world.paused = self.world.lag_status = False
        for _, release, kind in self.late:
            self._offer(release, kind)
        self.late = []
        self.world.bad.clear()
        for pod in self.world.pods.values():
            pod.late = 0
        self.world.works.budget(1)
        self.world.works.free()
        self._uncordon()
        for name in self.world.machines:
            self.world.store.merge(NODES, "", name, {"metadata": {"annotations": {MASTER: None}}})

    def _uncordon(self) -> None:
        for name in self.world.persons:
            self.world.cordon(name, False)
        self.world.persons.clear()

    def _settle(self) -> None:
        """A new driver takes its time, and a person helps it on now and then."""
        for _ in range(SETTLE):
            self.tick()
        for number in range(EACH * len(self.world.machines) if self.driver.env else 0):
            if number % HELP == 0:
                self._resume()
            if not self._upgrading():
                return
            self.tick()

    def _resume(self) -> None:
        """As the reason UpgradeStopped says."""
        for name in self.world.machines:
            state = state_of(self.world.store.get(NODES, "", name))
            if state is not None and state.stage == FAILED and not state.cordoned:
                self.world.store.merge(NODES, "", name, {"metadata": {"annotations": {UPGRADE: None}}})

    def _upgrading(self) -> bool:
        return any(
            self._marked(name) or not self.world.driver_ready(name) or self._old(name)
            for name in self.world.machines
        )

    def _marked(self, name: str) -> bool:
        metadata = self.world.store.get(NODES, "", name)["metadata"]
        return UPGRADE in metadata["annotations"] or UPGRADE in metadata["labels"]

    def _old(self, name: str) -> bool:
        value = self.driver.env.get(CHANGES, "")
        return any(pod.node == name and pod.value != value for pod in self.world.pods.values())

    # properties

    def _check_tick(self) -> None:
        world = self.world
        for node, version, loaded, kernel in world.loaded[self.seen_loads :]:
            assert loaded == kernel, (
                f"{node}: modules for {loaded} are loaded into {kernel} by a pod of {version}"
            )
        self.seen_loads = len(world.loaded)
        for node, headers, kernel in world.built:
            assert headers == kernel, f"{node}: headers of {headers} passed on {kernel}"
        versions = [each["metadata"]["annotations"][LABEL] for each in world.daemonsets()]
        assert len(versions) == len(set(versions)), f"two DaemonSets of one version: {versions}"
        if world.now > self.troubled and not self.controller.failed:
            self._check_labels()
            for pod in world.pods.values():
                assert not pod.up or not world.lacks(pod), f"{pod.name} lacks {world.lacks(pod)}"
        self._check_gaps()
        self._check_upgrade()

    def _check_upgrade(self) -> None:
        """No more nodes are taken down than may be; a person's cordon stays."""
        nodes = self.world.store.objects.get(NODES, {})
        states = {name: state_of(node) for (_, name), node in nodes.items()}
        down = [name for name, state in states.items() if state is not None and state.down]
        assert len(down) <= self.script.most, f"{down} are taken down at once"
        for name in self.world.persons:
            assert nodes["", name]["spec"].get("unschedulable"), f"a person's cordon of {name} is gone"

    def _check_labels(self) -> None:
        """Within one round of a change of nodeInfo the label is right."""
        for machine in self.world.machines.values():
            node = self.world.store.get(NODES, "", machine.name)
            assert machine.told is not None
            found = node["metadata"]["labels"].get(LABEL)
            assert found == machine.told.version, (
                f"{machine.name} is labelled {found}, not {machine.told.version}"
            )

    def _check_gaps(self) -> None:
        """A node whose set was prebuilt lacks its driver for its reboot, and a moment."""
        limit = self.world.down_for + self.world.tell_lag + SLACK
        for node, ticks, prebuilt, disturbed in self.world.gaps:
            assert not prebuilt or disturbed or ticks <= limit, f"{node}: {ticks} ticks without a driver"
        self.world.gaps.clear()

    def _check_prebuilt(self, before: Set[str]) -> None:
        """A node reboots into a version whose set is there, if its toolkit was known long enough."""
        world = self.world
        for machine in world.machines.values():
            if (
                not machine.down
                or machine.name in before
                or machine.target is None
                or not self.script.registry
            ):
                continue
            since = max(self.known_since.get(machine.target, 1 << 30), self.troubled)
            known = world.stream.get(machine.target.version) == machine.target.image
            if not known or world.unpullable:
                continue
            if world.now - since > PREBUILD + 3:
                assert machine.prebuilt, (
                    f"{machine.name} reboots into {machine.target.version}, nothing is prebuilt"
                )

    def _see_what_is_coming(self) -> None:
        world = self.world
        kinds = (frozenset(each.arch for each in world.machines.values()), world.failing_jobs)
        told = {each.told for each in world.machines.values()} | {
            each.release for each in world.machines.values()
        }
        latest = world.stream.get("latest")
        coming = next((each for each in RELEASES if each.image == latest), None)
        good = coming is not None and world.stream.get(coming.version) == latest and coming not in told
        if not good or kinds != self.kinds or world.failing_jobs:
            self.known_since, self.kinds = {}, kinds
        if good and coming is not None and not world.failing_jobs:
            self.known_since = {coming: self.known_since.get(coming, world.now)}

    def _check_end(self) -> None:
        """Every node that can have a driver has it, and nothing is left of versions that are gone."""
        for machine in self.world.machines.values():
            assert not machine.down
            if self._can_serve(machine):
                assert self.world.driver_ready(machine.name), (
                    f"{machine.name} has no driver: {self._why(machine)}"
                )
        running = {machine.release.version for machine in self.world.machines.values()}
        coming = {
            name for name, image in self.world.stream.items() if image == self.world.stream.get("latest")
        }
        there = {each["metadata"]["annotations"][LABEL] for each in self.world.daemonsets()}
        assert running <= there, f"no DaemonSet for {running - there}"
        assert there <= running | coming, f"DaemonSets of versions that are gone: {there - running - coming}"
        self._check_objects()
        if all(map(self._can_serve, self.world.machines.values())):
            self._check_drivers()

    def _check_drivers(self) -> None:
        """Every node has the driver that is wanted, and is left alone."""
        for name, machine in self.world.machines.items():
            assert not self._old(name), f"{name} has an old driver: {self._why(machine)}"
            assert not self._marked(name), f"{name} is still under way"
            node = self.world.store.get(NODES, "", name)
            assert not node["spec"].get("unschedulable"), f"{name} stays cordoned"
            assert node["metadata"]["labels"].get(PLUGIN) in (None, "true"), f"{name} stays paused"

    def _check_objects(self) -> None:
        """Our objects are as they were meant, whatever others did to them, and no others are left."""
        assert self.controller.plan is not None
        objects = self.controller.rounds.objects(self.controller.plan)
        maps = {each["metadata"]["name"] for each in objects if each["kind"] == "ConfigMap"}
        used = {name for pod in self.world.pods.values() for name in pod.config_maps}
        there = {name for _, name in self.world.store.objects.get(CONFIG_MAPS, {})}
        assert maps <= there <= maps | used, f"ConfigMaps {there} are there, {maps} are wanted, {used} used"
        for wanted in objects:
            if wanted["kind"] == "DaemonSet":
                found = self.world.store.get(DAEMONSETS, SPACE, wanted["metadata"]["name"])
                assert found["spec"]["template"] == wanted["spec"]["template"], (
                    "a DaemonSet is not as planned"
                )

    def _can_serve(self, machine: Machine) -> bool:
        world, kernel = self.world, machine.kernel
        if kernel in machine.store or (kernel, machine.arch) in world.registry:
            return True
        image = machine.release.image
        if image in world.unpullable:
            return False
        named = world.stream.get(machine.release.version, "none")
        if named == image:
            return True
        known = image in world.labelled_images and any(
            found == image for tag, found in world.stream.items() if tag != "latest"
        )
        wrong = named in ("none", None) or named in world.labelled_images
        return known and wrong

    def _why(self, machine: Machine) -> str:
        pods = [pod for pod in self.world.pods.values() if pod.node == machine.name]
        groups = (
            [group for group in self.controller.plan.groups if machine.name in group.nodes]
            if self.controller.plan
            else []
        )
        return f"{machine} {pods} {groups}"

    def _check_still(self) -> None:
        """A new controller makes the same plan, and neither it nor the old one has anything to write."""
        old = self.controller.plan
        version = self.world.store.version
        for new in (False, True):
            if new:
                self._restart()
            for _ in range(3):
                self.controller.due = True
                self.controller.step()
                assert self.controller.plan == old, "the plan does not stay as it is"
        assert self.world.store.version == version, "something is written again and again"


def run(script: Script) -> Simulation:
    """Run a script; AssertionError where a property does not hold."""
    return Simulation(script).run()

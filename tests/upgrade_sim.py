"""The upgrade simulator: the shipped planner and controller against a `World`, by a script.

Properties are checked at every tick: `run(script)` raises AssertionError where one does not hold.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, NamedTuple, Optional, Set, Tuple

from api_store import Refusal
from attrs import define, field
from memory_api import MemoryApi
from upgrade_world import (
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
from nvdriver_build.fleet.controller.following import followers
from nvdriver_build.fleet.controller.kinds import Kind
from nvdriver_build.fleet.controller.rounds import Outcome, Rounds
from nvdriver_build.fleet.controller.view import View
from nvdriver_build.fleet.manifests import Driver
from nvdriver_build.fleet.names import LABEL
from nvdriver_build.fleet.plan import Plan
from nvdriver_build.fleet.reasons import Reason

RELEASES = tuple(Release(number, number % 3) for number in range(1, 6))
CALM = 3
"""Ticks without trouble after which everything has to be as it should."""
SETTLE = 60
SLACK = START + LOAD + END + 4
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


class Crash(BaseException):
    """The controller is killed."""


class Registry:
    """`Sets` of a world."""

    def __init__(self, world: World) -> None:
        self.world = world

    def has(self, kernel: str, arch: str) -> Optional[bool]:
        return (kernel, arch) in self.world.registry

    def reasons(self) -> Tuple[Reason, ...]:
        return ()


class WatchedApi(MemoryApi):
    """Sees to it that no DaemonSet is deleted under a pod, and that only what is ours is written."""

    world: World

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
        assert pod is None or pod.phase != "ready", f"the pod {name} is deleted while it is ready"
        self.world.end(name)


@define
class Controller:
    """The shipped parts of `fleet watch`, without its threads: one life of it."""

    api: MemoryApi
    driver: Driver
    sets: Optional[Registry]
    view: View = field(init=False)
    rounds: Rounds = field(init=False)
    followers: Tuple[Any, ...] = field(init=False)
    due: bool = field(init=False, default=True)
    failed: bool = field(init=False, default=False)
    plan: Optional[Plan] = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self.view = View(self.driver.name, self._wake)
        self.rounds = Rounds(self.api, self.view, self.driver, sets=self.sets)
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

    def __attrs_post_init__(self) -> None:
        script = self.script
        self.world = World(
            RELEASES, at_once=script.at_once, down_for=script.down_for, tell_lag=script.tell_lag
        )
        given: Dict[str, Any] = (
            {"registry": "registry.example/nvidia", "sign_secret": "signing"} if script.registry else {}
        )
        self.driver = Driver(image="quay.io/example/driver@sha256:0", namespace=SPACE, **given)
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
        for _ in range(SETTLE):
            self.tick()
        self._check_end()
        self._check_still()
        return self

    def tick(self) -> None:
        world = self.world
        for when, release, how in [each for each in self.late if each[0] <= world.now]:
            self.late.remove((when, release, how))
            self._offer(release, how)
        for machine in world.machines.values():
            if machine.fell is not None and world.now - self.troubled <= 1:
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
        sets = Registry(self.world) if self.script.asked else None
        self.controller = Controller(self.api, self.driver, sets)

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
        self._check_gaps()

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

    def _check_objects(self) -> None:
        """Our objects are as they were meant, whatever others did to them."""
        assert self.controller.plan is not None
        for wanted in self.controller.rounds.objects(self.controller.plan):
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

"""What is known of the cluster: a cache for each kind, and the facts that a plan is made from.

Documents are reduced as they come; what is kept of 10,000 nodes is their facts. A change that changes no
fact (a heartbeat) wakes nobody.
"""

from __future__ import annotations

import json
import threading
from typing import Any, Callable, Generic, Iterable, Iterator, Mapping, Optional, TypeVar

from attrs import evolve, field, frozen

from nvdriver_build.fleet.controller.api import DELETED, Document, Event
from nvdriver_build.fleet.facts import Cluster, DaemonSet, Node
from nvdriver_build.fleet.inventory import (
    cluster_version_facts,
    daemonset_facts,
    imagestream_facts,
    job_facts,
    nodes_facts,
    pool_facts,
)
from nvdriver_build.fleet.inventory.workloads import pool_selector
from nvdriver_build.fleet.names import (
    COMPONENT,
    DRIVER,
    DRIVER_CONTAINER,
    DRIVER_NOTE,
    FLEET,
    LABEL,
    MANAGED_BY,
    TEMPLATE_NOTE,
)
from nvdriver_build.fleet.objects import condition, entries, number, part, text, texts
from nvdriver_build.fleet.versions import digest

T = TypeVar("T")


@frozen
class Live:
    """An object of our namespace as it is: enough to see whether it is as we applied it.

    `mark` changes whenever somebody changes what it is meant to be: its generation, or of what has none a
    digest. `fact` is what inventory makes of it, None for what it passes over.
    """

    name: str
    ours: bool
    uid: str
    mark: str
    fact: Any = None
    resource_version: str = field(default="", eq=False)

    def document(self) -> Document:
        """As preconditions of a delete need it."""
        return {"metadata": {"uid": self.uid, "resourceVersion": self.resource_version}}


@frozen
class Pod:
    """A driver's pod of ours: for which version, by which template and driver. `ready` is whether its driver
    is, whatever the toolkit's container does; `up` whether that has come up: a probe may be late.
    `config_maps` are those that it reads.
    """

    name: str
    node: Optional[str]
    version: Optional[str]
    template: Optional[str]
    ready: bool
    ending: bool
    up: bool = False
    driver: Optional[str] = None
    config_maps: tuple[str, ...] = ()
    uid: str = ""
    resource_version: str = field(default="", eq=False)

    def document(self) -> Document:
        """As preconditions of a delete need it."""
        return {"metadata": {"uid": self.uid, "resourceVersion": self.resource_version}}


class Cache(Generic[T]):
    """The values of one kind by namespace and name. `changed` is called after each change of one."""

    def __init__(self, reduce: Callable[[Document], Optional[T]], changed: Callable[[], None]) -> None:
        self._reduce, self._changed = reduce, changed
        self.values: dict[str, T] = {}
        self.synced = False

    def reduced(self, documents: Iterable[Document]) -> dict[str, T]:
        """What is kept of these."""
        found = {_key(each): self._reduce(each) for each in documents}
        return {key: value for key, value in found.items() if value is not None}

    def put(self, values: dict[str, T]) -> None:
        """All that there are."""
        changed = values != self.values or not self.synced
        self.values, self.synced = values, True
        if changed:
            self._changed()

    def take(self, event: Event) -> None:
        """What a watch says of one."""
        key = _key(event.object)
        value = None if event.type == DELETED else self._reduce(event.object)
        before = self.values.pop(key, None)
        if value is not None:
            self.values[key] = value
        if value != before:
            self._changed()


class View:
    """The whole cluster. Written by those who follow it, read by rounds; `wake` is called after changes."""

    def __init__(self, manager: str, wake: Callable[[], None]) -> None:
        self.manager = manager
        self.lock = threading.RLock()
        self.nodes: Cache[Node] = Cache(self._node, wake)
        self.pools: Cache[Document] = Cache(_pool, wake)
        self.versions: Cache[Document] = Cache(_version, wake)
        self.streams: Cache[Document] = Cache(_stream, wake)
        self.tags: Cache[Document] = Cache(lambda document: document, wake)
        self.daemonsets: Cache[Live] = Cache(lambda each: live(each, manager, daemonset_facts), wake)
        self.jobs: Cache[Live] = Cache(lambda each: live(each, manager, job_facts), wake)
        self.config_maps: Cache[Live] = Cache(lambda each: _config_map(each, manager), wake)
        self.pods: Cache[Pod] = Cache(lambda each: pod(each, manager), wake)
        self.others: tuple[Cache[DaemonSet], ...] = (Cache(_other, wake), Cache(_other, wake))
        self._stream_of: tuple[object, object, Any] = (None, None, None)

    @property
    def caches(self) -> tuple[Cache[Any], ...]:
        """Those that have to be filled before anything can be planned."""
        mine = (self.daemonsets, self.jobs, self.config_maps, self.pods)
        return (self.nodes, self.pools, self.versions, self.streams, self.tags, *mine, *self.others)

    @property
    def synced(self) -> bool:
        """Whether everything has been read once."""
        return all(cache.synced for cache in self.caches)

    def cluster(self) -> Cluster:
        """The facts, all of one moment."""
        with self.lock:
            versions = list(self.versions.values.values())
            return Cluster(
                nodes=tuple(self.nodes.values.values()),
                imagestream=self._imagestream(),
                cluster_version=cluster_version_facts(versions[0]) if versions else None,
                pools=_facts(map(pool_facts, self.pools.values.values())),
                daemonsets=_facts(
                    (
                        *(each.fact for each in self.daemonsets.values.values()),
                        *(each for cache in self.others for each in cache.values.values()),
                    )
                ),
                jobs=_facts(each.fact for each in self.jobs.values.values()),
            )

    def live(self, plural: str) -> Mapping[str, Live]:
        """The objects of our namespace of this kind, by name."""
        known = {"daemonsets": self.daemonsets, "jobs": self.jobs, "configmaps": self.config_maps}
        with self.lock:
            return {each.name: each for each in known[plural].values.values()}

    def selectors(self) -> tuple[Document, ...]:
        """By what pools choose their nodes: when it changes, nodes have to be read again."""
        with self.lock:
            return tuple(pool_selector(each) for each in self.pools.values.values())

    def _imagestream(self) -> Any:
        stream, tags = next(iter(self.streams.values.values()), None), tuple(self.tags.values.values())
        if self._stream_of[0] is not stream or self._stream_of[1] != tags:
            made = None if stream is None else imagestream_facts(stream, tags)
            self._stream_of = (stream, tags, made)
        return self._stream_of[2]

    def _node(self, document: Document) -> Optional[Node]:
        found, _ = nodes_facts((document,), self.pools.values.values())
        return evolve(found[0], reasons=tuple(sorted(found[0].reasons))) if found else None


def live(document: Document, manager: str, reduce: Optional[Callable[[Any, str], Any]]) -> Optional[Live]:
    """What is kept of an object; None for what has no name."""
    name = text(document, "metadata", "name")
    if name is None:
        return None
    generation = number(document, "metadata", "generation")
    mark = str(generation) if generation else digest(json.dumps(document.get("data"), sort_keys=True))
    return Live(
        name=name,
        ours=texts(document, "metadata", "labels").get(MANAGED_BY) == manager,
        uid=text(document, "metadata", "uid") or "",
        mark=mark,
        fact=reduce(document, manager) if reduce else None,
        resource_version=text(document, "metadata", "resourceVersion") or "",
    )


def _other(document: Document) -> Optional[DaemonSet]:
    """A driver's DaemonSet in another namespace: not ours to change, whoever has made it."""
    found = daemonset_facts(document, "")
    return evolve(found, ours=False) if found else None


def _config_map(document: Document, manager: str) -> Optional[Live]:
    """Without our own status, which we write ourselves."""
    status = texts(document, "metadata", "labels").get(COMPONENT) == FLEET
    return None if status else live(document, manager, None)


def pod(document: Document, manager: str) -> Optional[Pod]:
    """What is kept of a driver's pod of ours; None for any other one."""
    name, labels = text(document, "metadata", "name"), texts(document, "metadata", "labels")
    if name is None or labels.get(MANAGED_BY) != manager or labels.get(COMPONENT) != DRIVER:
        return None
    told = entries(document, "status", "containerStatuses")
    container = next((each for each in told if each.get("name") == DRIVER_CONTAINER), {})
    return Pod(
        name=name,
        node=text(document, "spec", "nodeName"),
        version=labels.get(LABEL),
        template=texts(document, "metadata", "annotations").get(TEMPLATE_NOTE),
        ready=container.get("ready") is True,
        up=container.get("started") is True,
        ending=text(document, "metadata", "deletionTimestamp") is not None,
        driver=texts(document, "metadata", "annotations").get(DRIVER_NOTE),
        config_maps=tuple(_config_maps(document)),
        uid=text(document, "metadata", "uid") or "",
        resource_version=text(document, "metadata", "resourceVersion") or "",
    )


def _config_maps(document: Document) -> Iterator[str]:
    for volume in entries(document, "spec", "volumes"):
        name = text(volume, "configMap", "name")
        if name is not None:
            yield name


def _key(document: Document) -> str:
    metadata = part(document, "metadata")
    return f"{metadata.get('namespace') or ''}/{metadata.get('name') or ''}"


def _facts(found: Iterable[Optional[T]]) -> tuple[T, ...]:
    return tuple(each for each in found if each is not None)


def _pool(document: Document) -> Document:
    """Without what changes with every node that is drained."""
    status = {"conditions": _conditions(document, "Updating")}
    return {**_named(document), "spec": part(document, "spec"), "status": status}


def _version(document: Document) -> Document:
    status = part(document, "status")
    history = [{"state": each.get("state")} for each in entries(status, "history")][:1]
    kept = {"history": history, "conditions": _conditions(document, "Progressing")}
    return {**_named(document), "status": {**kept, "desired": part(status, "desired")}}


def _conditions(document: Document, kind: str) -> list[Document]:
    """Only what it says, not since when or why."""
    found = condition(document, kind)
    return [{"type": kind, "status": found.get("status")}] if found else []


def _stream(document: Document) -> Document:
    return {**_named(document), "spec": part(document, "spec"), "status": part(document, "status")}


def _named(document: Document) -> dict[str, Any]:
    return {"metadata": {"name": text(document, "metadata", "name")}}

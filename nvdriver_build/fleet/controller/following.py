"""Following one kind: list it, then watch from there, and list again only where the API has forgotten.

Written as steps without threads or clocks, so that the simulator runs the very same code.
"""

from __future__ import annotations

from typing import Any, Callable, Optional

from attrs import define, field

from nvdriver_build.fleet.controller.api import BOOKMARK, Api, Document, Event, Gone, Missing, Refused
from nvdriver_build.fleet.controller.kinds import (
    CLUSTER_VERSION,
    CONFIG_MAP,
    DAEMONSET,
    IMAGE_STREAM,
    IMAGE_STREAM_TAG,
    JOB,
    NODE,
    POD,
    POOL,
    Kind,
)
from nvdriver_build.fleet.controller.view import Cache, View
from nvdriver_build.fleet.inventory.toolkits import NAME as TOOLKIT
from nvdriver_build.fleet.names import COMPONENT, DRIVER
from nvdriver_build.fleet.objects import entries, text

OPENSHIFT = "openshift"
"""The namespace of the ImageStream driver-toolkit."""
OPERATORS = "openshift.driver-toolkit=true"
"""The label of the GPU Operator's DaemonSets on OpenShift; newer ones have the component, too."""
_FORBIDDEN = 403


@define
class Follower:
    """One kind and its cache. `version` is how far it has come; None where it has to begin with a list.

    `optional` kinds are those that only OpenShift has; `only` is the one object that counts, `beside` the
    namespace whose objects do not. `after` comes after each change of the cache; where it raises, the same
    change comes again. `stale` asks for a new list.
    """

    api: Api
    kind: Kind
    cache: Cache[Any]
    view: View
    namespace: Optional[str] = None
    labels: str = ""
    only: Optional[str] = None
    beside: Optional[str] = None
    optional: bool = False
    after: Callable[[], None] = lambda: None
    version: Optional[str] = None
    stale: bool = False

    def once(self) -> None:
        """List where that is needed, then watch until the server ends it. Raises what the API raises.

        `Missing` is for a kind that this cluster does not have: it counts as empty, and may come later.
        """
        if self.version is None or self.stale:
            self.list()
        assert self.version is not None
        try:
            for event in self.api.watch(self.kind, self.version, self.namespace, self.labels):
                self._take(event)
                if self.stale:
                    return
        except Gone:
            self.version = None

    def list(self) -> None:
        """Read all of them."""
        self.stale, self.version = False, None
        values, version = dict[str, Any](), ""
        try:
            for page in self.api.pages(self.kind, self.namespace, self.labels):
                values.update(self.cache.reduced(filter(self._wanted, page.items)))
                version = page.version
        except Missing:
            if self.optional:
                self._put({})
            raise
        self._put(values)
        self.version = version

    def _put(self, values: dict[str, Any]) -> None:
        with self.view.lock:
            self.cache.put(values)
        self.after()

    def _take(self, event: Event) -> None:
        if event.type != BOOKMARK and self._wanted(event.object):
            with self.view.lock:
                self.cache.take(event)
            self.after()
        self.version = text(event.object, "metadata", "resourceVersion") or self.version

    def _wanted(self, document: Document) -> bool:
        if self.beside is not None and text(document, "metadata", "namespace") == self.beside:
            return False
        return self.only is None or text(document, "metadata", "name") == self.only


def followers(api: Api, view: View, namespace: str) -> tuple[Follower, ...]:
    """Those that keep the whole view. Nodes come after pools, since their facts name them."""
    nodes = Follower(api, NODE, view.nodes, view)
    pools, tags = _Selectors(view, nodes), _Tags(api, view)
    drivers = f"{COMPONENT}={DRIVER}"
    return (
        Follower(api, POOL, view.pools, view, optional=True, after=pools.look),
        nodes,
        Follower(api, CLUSTER_VERSION, view.versions, view, optional=True),
        Follower(
            api, IMAGE_STREAM, view.streams, view, OPENSHIFT, only=TOOLKIT, optional=True, after=tags.look
        ),
        Follower(api, DAEMONSET, view.daemonsets, view, namespace),
        Follower(api, JOB, view.jobs, view, namespace),
        Follower(api, CONFIG_MAP, view.config_maps, view, namespace),
        Follower(api, POD, view.pods, view, namespace, drivers),
        *(
            Follower(api, DAEMONSET, cache, view, labels=labels, beside=namespace)
            for labels, cache in zip((drivers, f"{OPERATORS},{COMPONENT}!={DRIVER}"), view.others)
        ),
    )


@define
class _Selectors:
    """Has nodes listed again when pools choose their nodes by something else than before."""

    view: View
    nodes: Follower
    known: tuple[Document, ...] = ()

    def look(self) -> None:
        now = self.view.selectors()
        if now != self.known:
            self.known, self.nodes.stale = now, True


@define
class _Tags:
    """Reads the ImageStreamTags, whose labels say which kernel an image holds: each once for each image."""

    api: Api
    view: View
    known: dict[str, object] = field(factory=dict)

    def look(self) -> None:
        stream = next(iter(self.view.streams.values.values()), None)
        wanted = _sources(stream)
        found = {name: each for name, each in self.view.tags.values.items() if self._same(name, wanted)}
        self.known = {name: source for name, source in self.known.items() if self._same(name, wanted)}
        for name in sorted(set(wanted) - set(self.known)):
            document = self._read(name)
            if document is not None:
                found[name] = document
            self.known[name] = wanted[name]
        with self.view.lock:
            self.view.tags.put(found)

    def _same(self, name: str, wanted: dict[str, object]) -> bool:
        return name in wanted and name in self.known and self.known[name] == wanted[name]

    def _read(self, name: str) -> Optional[Document]:
        try:
            return self.api.get(IMAGE_STREAM_TAG, f"{TOOLKIT}:{name}", OPENSHIFT)
        except Missing:  # not imported, or an API that has no such kind
            return None
        except Refused as refused:
            if refused.status == _FORBIDDEN:
                return None
            raise


def _sources(stream: Optional[Document]) -> dict[str, object]:
    """What stands behind each tag: where it is from, and what was imported last."""
    imported = {
        text(each, "tag"): next(entries(each, "items"), None) for each in entries(stream, "status", "tags")
    }
    return {
        name: (each.get("from"), imported.get(name))
        for each in entries(stream, "spec", "tags")
        if (name := text(each, "name")) is not None
    }

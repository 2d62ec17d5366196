"""A Kubernetes API server on loopback that speaks the real wire protocol, as small as the tests need.

`with ApiServer() as server:` serves `server.store` at `server.url`. Faults are put in by `server.faults`:
callables that see (method, path, query) and return None, or a `Fault`.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple
from urllib.parse import parse_qsl, urlsplit

from api_store import Doc, Refusal, Store

APPLY, MERGE = "application/apply-patch+yaml", "application/merge-patch+json"
PAGE_LIFE = 60.0
GLOBAL = ("nodes", "clusterversions", "machineconfigpools", "namespaces")
OPENSHIFT = {
    "/apis/image.openshift.io/v1": ("imagestreams", "imagestreamtags"),
    "/apis/config.openshift.io/v1": ("clusterversions",),
    "/apis/machineconfiguration.openshift.io/v1": ("machineconfigpools",),
}
"""What discovery tells of groups that not every cluster has."""


class Fault(NamedTuple):
    """What goes wrong with a request: an HTTP status, a delay in seconds, or a connection that breaks.

    Of a watch: `error` is sent as an ERROR event of that code; `drop` breaks it after so many events.
    """

    status: Optional[int] = None
    delay: float = 0.0
    cut: bool = False
    error: Optional[int] = None
    drop: Optional[int] = None
    retry_after: Optional[int] = None


Faults = List[Callable[[str, str, Dict[str, str]], Optional[Fault]]]


class Place(NamedTuple):
    """What a path means."""

    plural: str
    namespace: str
    name: Optional[str]
    part: Optional[str]


def place(path: str) -> Place:
    """`/apis/apps/v1/namespaces/gpu/daemonsets/name/status` in its parts."""
    words = path.strip("/").split("/")
    if words[0] == "api":
        version, rest = words[1], words[2:]
    elif words[0] == "apis" and len(words) > 3:
        version, rest = f"{words[1]}/{words[2]}", words[3:]
    else:
        raise Refusal(404, "NotFound", "the server could not find the requested resource")
    namespace = ""
    if len(rest) > 2 and rest[0] == "namespaces":
        namespace, rest = rest[1], rest[2:]
    name = rest[1] if len(rest) > 1 else None
    return Place(f"{version}/{rest[0]}", namespace, name, rest[2] if len(rest) > 2 else None)


class ApiServer:
    """The server; `kinds` are those that it does not know (404), as a cluster that is not OpenShift's."""

    def __init__(self, bookmark_every: float = 0.2) -> None:
        self.store = Store()
        self.lock = threading.Condition()
        self.faults: Faults = []
        self.unknown: List[str] = []
        self.bookmark_every = bookmark_every
        self.requests: Counter[str] = Counter()
        self.watching: Counter[str] = Counter()
        self.pages: Dict[str, Tuple[float, List[Doc], int]] = {}
        self.ended = False
        self.generation = 0
        self.store.listeners.append(self._wake)
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> ApiServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended = True
        self.drop_watches()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def kubeconfig(self, path: Path, namespace: str = "nvidia-gpu-driver") -> Path:
        """A kubeconfig file for this server."""
        context = {"cluster": "test", "user": "test", "namespace": namespace}
        path.write_text(
            json.dumps({
                "apiVersion": "v1", "kind": "Config", "current-context": "test",
                "clusters": [{"name": "test", "cluster": {"server": self.url}}],
                "users": [{"name": "test", "user": {"token": "secret-token"}}],
                "contexts": [{"name": "test", "context": context}],
            })
        )  # fmt: skip
        return path

    def put(self, plural: str, document: Doc) -> Doc:
        """An object as it is in the cluster from now on."""
        with self.lock:
            return self.store.put(plural, document)

    def remove(self, plural: str, namespace: str, name: str) -> None:
        """Delete an object."""
        with self.lock:
            self.store.delete(plural, namespace, name)

    def compact(self) -> None:
        """Forget old versions, and break all watches, as a restarted server does."""
        with self.lock:
            self.store.version += 1
            self.store.compact()
        self.drop_watches()

    def drop_watches(self) -> None:
        """Break every watch that is open."""
        with self.lock:
            self.generation += 1
            self.lock.notify_all()

    def fault(self, method: str, path: str, query: Dict[str, str]) -> Fault:
        for each in list(self.faults):
            found = each(method, path, query)
            if found is not None:
                return found
        return Fault()

    def _wake(self) -> None:
        self.lock.notify_all()


def once(method: str, containing: str, fault: Fault, times: int = 1) -> Callable[..., Optional[Fault]]:
    """A fault for the next `times` requests of this method whose path contains this."""
    left = [times]

    def judge(asked: str, path: str, query: Dict[str, str]) -> Optional[Fault]:
        verb = "WATCH" if query.get("watch") in ("1", "true") else asked
        if verb != method or containing not in path or not left[0]:
            return None
        left[0] -= 1
        return fault

    return judge


def _handler(server: ApiServer) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        api = server

    return Handler


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: ApiServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def _serve(self) -> None:
        split = urlsplit(self.path)
        query = dict(parse_qsl(split.query))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        watch = query.get("watch") in ("1", "true")
        self.api.requests["WATCH" if watch else self.command, split.path] += 1  # type: ignore[index]
        fault = self.api.fault(self.command, split.path, query)
        time.sleep(fault.delay)
        try:
            if fault.cut:
                self.close_connection = True
                return
            if fault.status is not None:
                raise Refusal(fault.status, "Injected", "a fault of the test", fault.retry_after)
            if split.path in OPENSHIFT:
                self._answer(200, self._served(split.path))
                return
            where = place(split.path)
            if where.plural.rpartition("/")[2] in self.api.unknown:
                raise Refusal(404, "NotFound", "the server could not find the requested resource")
            if watch:
                self._watch(where, query, fault)
            else:
                self._answer(*self._act(where, query, json.loads(body) if body else {}))
        except Refusal as refusal:
            self._answer(refusal.code, refusal.status(), refusal.retry_after)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _served(self, path: str) -> Doc:
        there = [name for name in OPENSHIFT[path] if name not in self.api.unknown]
        if not there:
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        return {"kind": "APIResourceList", "resources": [{"name": name} for name in there]}

    def _act(self, where: Place, query: Dict[str, str], body: Doc) -> Tuple[int, Doc]:
        store, (plural, namespace, name, part) = self.api.store, where
        with self.api.lock:
            if self.command == "GET" and name is None:
                return 200, self._list(where, query)
            if self.command == "GET":
                return 200, store.get(plural, namespace, str(name))
            if self.command == "POST" and part == "eviction":
                same = (body.get("deleteOptions") or {}).get("preconditions") or {}
                store.evict(namespace, str(name), same.get("uid"))
                return 201, {"kind": "Status", "status": "Success"}
            if self.command == "POST":
                return 201, store.create(plural, namespace, body)
            if self.command == "PUT":
                return 200, store.update(plural, namespace, str(name), body)
            if self.command == "DELETE":
                store.delete(plural, namespace, str(name), body.get("preconditions") or {})
                return 200, {"kind": "Status", "status": "Success"}
            return 200, self._patch(where, query, body)

    def _patch(self, where: Place, query: Dict[str, str], body: Doc) -> Doc:
        store, (plural, namespace, name, _) = self.api.store, where
        kind = self.headers.get("Content-Type")
        if kind == MERGE:
            return store.merge(plural, namespace, str(name), body)
        if kind != APPLY:
            raise Refusal(415, "UnsupportedMediaType", f"{kind} is not one of those that the tests know")
        if "fieldManager" not in query:
            raise Refusal(400, "BadRequest", "fieldManager is required for apply patch")
        if body.get("metadata", {}).get("managedFields"):
            raise Refusal(400, "BadRequest", "metadata.managedFields must be nil")
        force, dry = query.get("force") == "true", query.get("dryRun") == "All"
        return store.apply(plural, namespace, str(name), body, query["fieldManager"], force, dry)

    def _list(self, where: Place, query: Dict[str, str]) -> Doc:
        store, token = self.api.store, query.get("continue")
        if token:
            made, items, version = self.api.pages.pop(token, (0.0, [], 0))
            if time.monotonic() - made > PAGE_LIFE:
                raise Refusal(410, "Expired", "The provided continue parameter is too old")
        else:
            selected = query.get("labelSelector", ""), query.get("fieldSelector", "")
            items, version = store.list(where.plural, where.namespace, *selected), store.version
        limit = int(query.get("limit") or 0) or len(items)
        metadata: Doc = {"resourceVersion": str(version)}
        if len(items) > limit:
            metadata["continue"] = f"page-{len(self.api.pages)}-{version}-{time.monotonic_ns()}"
            self.api.pages[metadata["continue"]] = (time.monotonic(), items[limit:], version)
        return {"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items[:limit]}

    def _watch(self, where: Place, query: Dict[str, str], fault: Fault) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        if fault.error is not None:
            self._event("ERROR", Refusal(fault.error, "Expired", "too old resource version").status())
            self._chunk(b"")
            return
        self.api.watching[where.plural] += 1
        try:
            if self._follow(where, query, fault.drop):
                self._chunk(b"")
                self.close_connection = False  # only what is broken off ends with its connection
        except Refusal as refusal:
            self._event("ERROR", refusal.status())
            self._chunk(b"")
        finally:
            self.api.watching[where.plural] -= 1

    def _follow(self, where: Place, query: Dict[str, str], drop: Optional[int]) -> bool:
        """Tell changes until the time is over; False where the connection is to break."""
        api, since = self.api, int(query.get("resourceVersion") or 0)
        selected = query.get("labelSelector", ""), query.get("fieldSelector", "")
        ends = time.monotonic() + float(query.get("timeoutSeconds") or 300)
        generation, sent = api.generation, 0
        bookmarks = query.get("allowWatchBookmarks") == "true"
        marked = time.monotonic() + api.bookmark_every
        while True:
            with api.lock:
                found = list(api.store.changes(where.plural, since, where.namespace, *selected))
                now, since = since, api.store.version
                if not found and api.generation == generation:
                    api.lock.wait(max(0.0, min(ends, marked) - time.monotonic()))
            for _, kind, document in found:
                if drop is not None and sent >= drop:
                    return False
                self._event(kind, document)
                sent += 1
            if api.generation != generation or api.ended:
                return False
            if bookmarks and time.monotonic() >= min(marked, ends) and now <= since:
                self._bookmark(where, since)
                marked = time.monotonic() + api.bookmark_every
            if time.monotonic() >= ends:
                return True

    def _bookmark(self, where: Place, version: int) -> None:
        self._event("BOOKMARK", {"kind": where.plural, "metadata": {"resourceVersion": str(version)}})

    def _event(self, kind: str, document: Doc) -> None:
        self._chunk(json.dumps({"type": kind, "object": document}).encode() + b"\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _answer(self, code: int, document: Doc, retry_after: Optional[int] = None) -> None:
        data = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if retry_after is not None:
            self.send_header("Retry-After", str(retry_after))
        self.end_headers()
        self.wfile.write(data)

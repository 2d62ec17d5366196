"""The API over HTTP: lightkube's kubeconfig, authentication and HTTP client, and verbs of our own.

Not lightkube's own verbs: its watch asks for no bookmarks, its models would be built from 10,000 nodes to be
taken apart again by `inventory`, and `Retry-After` is lost on the way.
"""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Optional

import httpx2
import msgspec
import yaml
from lightkube import ConfigError, KubeConfig
from lightkube.config.client_adapter import Client, ConnectionParams
from lightkube.config.kubeconfig import SingleConfig
from lightkube.config.models import User

from nvdriver_build.errors import ClusterError
from nvdriver_build.fleet.controller.api import (
    Document,
    Event,
    Listing,
    Missing,
    Refused,
    Unreachable,
    refusal,
)
from nvdriver_build.fleet.controller.kinds import POD, Kind
from nvdriver_build.fleet.objects import entries, part, text

MANAGER = "nvdriver-build"
"""Our field manager."""
PAGE = 500
"""Objects in one answer, as kubectl asks for."""
WATCH_SECONDS = 120
"""After so long a server ends a watch; it is opened again from where it was. A connection that died without a
word is noticed soon after.
"""
_TIMEOUT = 15.0
_SILENCE = WATCH_SECONDS + 30.0
_FORBIDDEN, _LONGEST = 403, 4096
_APPLY, _MERGE = "application/apply-patch+yaml", "application/merge-patch+json"
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_BAD_FILES = (AttributeError, TypeError, ValueError, msgspec.MsgspecError, yaml.YAMLError)
"""What lightkube lets through where a kubeconfig is none."""
Count = Callable[[str, Kind, int], None]
"""Told of every request: verb, kind, HTTP status (0 without an answer)."""


def cluster_config(kubeconfig: Optional[Path], context: Optional[str] = None) -> SingleConfig:
    """Where the API is and who we are: by a kubeconfig file, else as the service account of this pod."""
    try:
        if kubeconfig is None:
            found = KubeConfig.from_service_account(_ACCOUNT).get()
        else:
            found = KubeConfig.from_file(kubeconfig).get(context)
    except (ConfigError, OSError, LookupError, *_BAD_FILES) as error:
        what = f"{kubeconfig} is no usable kubeconfig" if kubeconfig else "this is no pod of a cluster"
        hint = "give one with --kubeconfig or KUBECONFIG; 'oc whoami' tries it"
        raise ClusterError(f"{what}: {str(error)[:200]}", hint=hint) from error
    assert found is not None  # None only where it is given as the default
    return found if found.user is not None else found._replace(user=User())


class HttpApi:
    """An `Api`. Used by several threads at once."""

    def __init__(self, config: SingleConfig, count: Optional[Count] = None, manager: str = MANAGER) -> None:
        self.namespace = config.namespace
        self._count = count or (lambda verb, kind, status: None)
        self._manager = manager
        try:
            self._http = Client(config, ConnectionParams(timeout=httpx2.Timeout(_TIMEOUT), trust_env=True))
        except (ConfigError, OSError, ssl.SSLError, ValueError) as error:
            hint = "are the certificates that the kubeconfig names there?"
            raise ClusterError(f"cannot connect to {config.cluster.server}: {error}", hint=hint) from error

    def close(self) -> None:
        """Break what is open."""
        self._http.close()

    def get(self, kind: Kind, name: str, namespace: Optional[str] = None) -> Document:
        """One object."""
        return self._ask("get", kind, "GET", kind.path(namespace, name))

    def pages(
        self, kind: Kind, namespace: Optional[str] = None, labels: str = "", fields: str = ""
    ) -> Iterator[Listing]:
        """All objects, page by page."""
        chosen = {"labelSelector": labels, "fieldSelector": fields}
        query: dict[str, Any] = {"limit": PAGE, **{name: text for name, text in chosen.items() if text}}
        while True:
            page = self._page(kind, namespace, query)
            yield Listing(tuple(entries(page, "items")), text(page, "metadata", "resourceVersion") or "")
            token = text(page, "metadata", "continue")
            if token is None:
                return
            query["continue"] = token

    def _page(self, kind: Kind, namespace: Optional[str], query: Mapping[str, Any]) -> Document:
        try:
            return self._ask("list", kind, "GET", kind.path(namespace), query)
        except Refused as refused:
            if refused.status == _FORBIDDEN and not self._served(kind):
                raise Missing(f"there are no {kind.plural} here: {refused.message}", status=404) from refused
            raise

    def _served(self, kind: Kind) -> bool:
        """Whether the API has the kind at all: who may not read it is told 403 before 404."""
        if not kind.group:
            return True
        try:
            served = self._ask("discover", kind, "GET", f"/apis/{kind.group}/{kind.version}")
        except Missing:
            return False
        return any(each.get("name") == kind.plural for each in entries(served, "resources"))

    def watch(
        self, kind: Kind, version: str, namespace: Optional[str] = None, labels: str = ""
    ) -> Iterator[Event]:
        """What changes after `version`."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS),
            "resourceVersion": version,
            **({"labelSelector": labels} if labels else {}),
        }
        what = f"watch {kind.plural}"
        timeout = httpx2.Timeout(_TIMEOUT, read=_SILENCE)
        try:
            with self._http.stream("GET", kind.path(namespace), params=query, timeout=timeout) as answer:
                self._count("watch", kind, answer.status_code)
                if answer.status_code != 200:
                    answer.read()
                    raise _refusal(what, answer)
                for line in answer.iter_lines():
                    yield _event(what, line)
        except httpx2.HTTPError as error:
            self._count("watch", kind, 0)
            raise _unreachable(what, error) from error

    def apply(self, kind: Kind, document: Document, force: bool = False, dry_run: bool = False) -> Document:
        """Server-side apply."""
        namespace, name = _place(document)
        query = {"fieldManager": self._manager, "force": str(force).lower()}
        if dry_run:
            query["dryRun"] = "All"
        return self._ask("apply", kind, "PATCH", kind.path(namespace, name), query, document, _APPLY)

    def merge(self, kind: Kind, name: str, change: Document, namespace: Optional[str] = None) -> Document:
        """A JSON merge patch."""
        query = {"fieldManager": self._manager}
        return self._ask("patch", kind, "PATCH", kind.path(namespace, name), query, change, _MERGE)

    def create(self, kind: Kind, document: Document) -> Document:
        """A new object."""
        query = {"fieldManager": self._manager}
        return self._ask("create", kind, "POST", kind.path(_place(document)[0]), query, document)

    def replace(self, kind: Kind, document: Document) -> Document:
        """Put in place of that resourceVersion."""
        query = {"fieldManager": self._manager}
        return self._ask("update", kind, "PUT", kind.path(*_place(document)), query, document)

    def delete(
        self, kind: Kind, name: str, namespace: Optional[str] = None, like: Optional[Document] = None
    ) -> None:
        """Delete the very object and version of `like`."""
        same = {field: text(like, "metadata", field) for field in ("uid", "resourceVersion")}
        conditions = {field: value for field, value in same.items() if value}
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        asked = {**body, "preconditions": conditions} if conditions else body
        self._ask("delete", kind, "DELETE", kind.path(namespace, name), {}, asked)

    def evict(self, name: str, namespace: str, uid: Optional[str] = None) -> None:
        """Ask a pod to go, as PodDisruptionBudgets allow it: 429 where they do not."""
        metadata = {"name": name, "namespace": namespace}
        body: dict[str, Any] = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
        if uid is not None:
            body["deleteOptions"] = {"preconditions": {"uid": uid}}
        self._ask("evict", POD, "POST", POD.path(namespace, name, "eviction"), {}, body)

    def _ask(
        self,
        verb: str,
        kind: Kind,
        method: str,
        path: str,
        query: Optional[Mapping[str, Any]] = None,
        body: Optional[Document] = None,
        content_type: str = "application/json",
    ) -> Document:
        what = f"{verb} {path}"
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": content_type} if content else {}
        try:
            answer = self._http.request(
                method, path, params=dict(query or {}), content=content, headers=headers
            )
            document = _decoded(answer)
        except httpx2.HTTPError as error:
            self._count(verb, kind, 0)
            raise _unreachable(what, error) from error
        self._count(verb, kind, answer.status_code)
        if not answer.is_success:
            raise _refusal(what, answer)
        if document is None:
            raise Unreachable(f"{what}: the answer is no JSON object", hint="is this a Kubernetes API?")
        return document


def _place(document: Document) -> tuple[Optional[str], str]:
    metadata = part(document, "metadata")
    return metadata.get("namespace"), str(metadata.get("name") or "")


def _decoded(answer: httpx2.Response) -> Optional[dict[str, Any]]:
    try:
        document = json.loads(answer.content)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _refusal(what: str, answer: httpx2.Response) -> Refused:
    after = answer.headers.get("Retry-After", "")
    message = _message(_decoded(answer)) or answer.reason_phrase
    return refusal(what, answer.status_code, message, float(after) if after.isdigit() else None)


def _message(status: Optional[Document]) -> str:
    """Of a Status, in one line: a conflict of several fields comes in as many."""
    found = (status or {}).get("message")
    words = " ".join(found[:_LONGEST].split()) if isinstance(found, str) else ""
    return "".join(each for each in words if each.isprintable())


def _unreachable(what: str, error: httpx2.HTTPError) -> Unreachable:
    why = str(error) or type(error).__name__
    return Unreachable(f"{what}: {why[:300]}", hint="is the API up, and reachable from here?")


def _event(what: str, line: str) -> Event:
    try:
        told = json.loads(line)
    except ValueError as error:
        raise Unreachable(
            f"{what}: half of an event", hint="the connection broke; it is opened anew"
        ) from error
    kind, document = text(told, "type"), part(told, "object")
    if kind == "ERROR":
        status = document.get("code")
        raise refusal(what, status if isinstance(status, int) else 500, _message(document))
    return Event(kind or "", document)


__all__ = ["MANAGER", "HttpApi", "cluster_config"]

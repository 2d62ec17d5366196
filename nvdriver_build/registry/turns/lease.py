"""A Kubernetes Lease that says who builds a set: one alone can take it.

Three calls of coordination.k8s.io/v1, as the service account of the pod: get, create, update. To create, and
to update with a resourceVersion, is the compare-and-swap. Whether the holder lives is judged by changes that
are seen, never by times that others wrote: clocks differ.
"""

from __future__ import annotations

import datetime
import json
import ssl
from pathlib import Path
from typing import Any, Callable, Optional

from attrs import field, frozen

from nvdriver_build.registry.transport import Answer, Failed, Limits, Transport
from nvdriver_build.registry.turns.board import NoBoard, Sight

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where Kubernetes puts a pod's token, its namespace and the API server's CA."""
LIMITS = Limits(connect=5.0, silence=10.0, answer=15.0)
_MOST = 256 * 1024
_MOST_TOKEN = 64 * 1024
_LONGEST_NAME = 200


@frozen
class Cluster:
    """The API server of the cluster that this pod runs in. The token is read each time: it is renewed."""

    url: str
    namespace: str
    token: Path
    authority: Optional[Path]


def in_cluster(host: Optional[str], port: Optional[str], folder: Path = SERVICE_ACCOUNT) -> Optional[Cluster]:
    """What KUBERNETES_SERVICE_HOST, _PORT and the service account say; None where this is no such pod."""
    try:
        namespace = (folder / "namespace").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    if not host or not namespace:
        return None
    shown = f"[{host}]" if ":" in host else host
    return Cluster(f"https://{shown}:{port or 443}", namespace, folder / "token", folder / "ca.crt")


@frozen(eq=False)
class LeaseBoard:
    """Leases in a namespace. `seconds` is what others read as the time after which we are taken for dead."""

    cluster: Cluster
    seconds: int = 45
    check: Callable[[], None] = lambda: None
    limits: Limits = LIMITS
    _transport: list[Transport] = field(factory=list)
    _leases: dict[str, dict[str, Any]] = field(factory=dict)
    """What was last seen or written of each Lease: updates have to name its version."""

    def before(self, until: float) -> LeaseBoard:
        """See `Board.before`; a call is short, and each method makes few."""
        return self

    def look(self, key: str) -> Optional[Sight]:
        """See `Board.look`."""
        answer = self._call("GET", f"/{_name(key)}", None, (200, 404))
        if answer.status == 404:
            self._leases.pop(key, None)
            return None
        return self._seen(key, answer)

    def claim(self, key: str, name: str, seen: Optional[Sight]) -> bool:
        """See `Board.claim`."""
        there = self._leases.get(key)
        if seen is None or there is None:
            body = self._document({"name": _name(key), "labels": _LABELS}, name, 0)
            answer = self._call("POST", "", body, (201, 409))
        else:
            transitions = there.get("spec", {}).get("leaseTransitions")
            body = self._document(
                _kept(there), name, (transitions if isinstance(transitions, int) else 0) + 1
            )
            answer = self._call("PUT", f"/{_name(key)}", body, (200, 201, 404, 409))
        if answer.status >= 400:
            return False
        return self._seen(key, answer).holder == name

    def renew(self, key: str, name: str) -> bool:
        """See `Board.renew`."""
        return self._update(key, name, name)

    def release(self, key: str, name: str) -> None:
        """See `Board.release`."""
        self._update(key, name, "")

    def _update(self, key: str, name: str, holder: str) -> bool:
        for _ in range(2):
            there = self._leases.get(key)
            if there is None or there.get("spec", {}).get("holderIdentity") != name:
                return False
            transitions = there["spec"].get("leaseTransitions")
            body = self._document(_kept(there), holder, transitions if isinstance(transitions, int) else 0)
            answer = self._call("PUT", f"/{_name(key)}", body, (200, 201, 404, 409))
            if answer.status < 400:
                self._seen(key, answer)
                return True
            if self.look(key) is None:  # a version that is not the last one: whose is it now?
                return False
        return False

    def _document(self, metadata: dict[str, Any], holder: str, transitions: int) -> dict[str, Any]:
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": self.seconds,
                "acquireTime": now,
                "renewTime": now,
                "leaseTransitions": transitions,
            },
        }

    def _seen(self, key: str, answer: Answer) -> Sight:
        try:
            document = json.loads(answer.body)
            version = document["metadata"]["resourceVersion"]
            holder = document.get("spec", {}).get("holderIdentity") or ""
            if not isinstance(version, str) or not isinstance(holder, str):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise NoBoard("the API server gives no Lease") from None
        self._leases[key] = document
        return Sight(holder[:_LONGEST_NAME], version)

    def _call(
        self, method: str, path: str, document: Optional[dict[str, Any]], wanted: tuple[int, ...]
    ) -> Answer:
        url = (
            f"{self.cluster.url}/apis/coordination.k8s.io/v1/namespaces/{self.cluster.namespace}/leases{path}"
        )
        try:
            token = self.cluster.token.read_bytes()[:_MOST_TOKEN].decode("ascii").strip()
            answer = self._connected().request(
                method,
                url,
                headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
                body=json.dumps(document).encode() if document is not None else None,
                most=_MOST,
                seconds=self.limits.answer,
            )
        except (OSError, UnicodeDecodeError, Failed) as error:
            raise NoBoard(f"the API server at {self.cluster.url} cannot be asked: {error}") from error
        if answer.status not in wanted:
            raise NoBoard(f"the API server answers {method} of a Lease with {answer.status}")
        return answer

    def _connected(self) -> Transport:
        if not self._transport:
            authority = self.cluster.authority
            context = ssl.create_default_context(cafile=str(authority) if authority else None)
            self._transport.append(Transport(context, limits=self.limits, check=self.check))
        return self._transport[0]


_LABELS = {"app.kubernetes.io/managed-by": "nvdriver-build"}


def _name(key: str) -> str:
    return f"nvdriver-build-{key}"


def _kept(lease: dict[str, Any]) -> dict[str, Any]:
    """Of the metadata what an update has to say again."""
    metadata = lease["metadata"]
    return {
        name: metadata[name]
        for name in ("name", "labels", "annotations", "resourceVersion")
        if name in metadata
    }

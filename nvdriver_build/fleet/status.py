"""What `fleet status` shows: the plan that the controller keeps in its status, beside what is ready now."""

from __future__ import annotations

import json
from typing import Any, Mapping, Sequence

from nvdriver_build.fleet.objects import entries, number, part, text, texts


def status_document(status: object, daemonsets: Sequence[object]) -> dict[str, Any]:
    """The document of `fleet status --json`, without `schema`; `status` is the status ConfigMap."""
    plan, conditions = (_parsed(status, name) for name in ("plan", "conditions"))
    there = {text(each, "metadata", "name"): each for each in daemonsets}
    groups = [_group(each, there.get(text(each, "daemonset"))) for each in entries(plan, "groups")]
    return {
        "groups": groups,
        "remove": part(plan).get("remove") or [],
        "conditions": list(entries(conditions)),
        "reasons": list(entries(plan, "reasons")),
        "upgrade": part(_parsed(status, "upgrade")) or None,
    }


def upgrade_lines(document: Mapping[str, Any]) -> list[str]:
    """How far a new driver is; nothing where none is on its way."""
    found = part(document, "upgrade")
    if not found:
        return []
    counts = [f"{number(found, 'waiting')} waiting", f"{len(list(entries(found, 'failed')))} failed"]
    head = f"upgrade: {number(found, 'done')} of {number(found, 'nodes')} nodes done, {', '.join(counts)}"
    nodes = [each for kind in ("in_progress", "failed") for each in entries(found, kind)]
    return [head, *(f"  {_node(each)}" for each in nodes)]


def _node(each: Mapping[str, Any]) -> str:
    why = text(each, "why")
    return f"{each.get('node')}: {each.get('stage')} since {each.get('since')}" + (f": {why}" if why else "")


def status_rows(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The table, with its heading."""
    heading = ("version", "kernel", "arch", "nodes", "toolkit", "rule", "set", "ready")
    return [heading, *map(_row, document["groups"])]


def _group(group: Mapping[str, Any], daemonset: object) -> dict[str, Any]:
    """Where groups share a DaemonSet, all have its numbers."""
    desired, ready = (number(daemonset, "status", name) for name in ("desiredNumberScheduled", "numberReady"))
    return {**group, "desired": desired, "ready": ready}


def _row(group: Mapping[str, Any]) -> tuple[str, ...]:
    toolkit = part(group, "toolkit")
    ready, desired = group["ready"], group["desired"]
    return (
        text(group, "rhcos_version") or "-",
        text(group, "kernel") or "-",
        text(group, "arch") or "-",
        "coming" if group.get("coming") else str(group.get("nodes")),
        text(toolkit, "tag") or text(toolkit, "image") or "-",
        text(toolkit, "rule") or "-",
        text(group, "state") or "-",
        f"{ready} of {desired}" if ready is not None and desired is not None else "-",
    )


def _parsed(status: object, name: str) -> Any:
    try:
        return json.loads(texts(status, "data").get(name, "null"))
    except ValueError:
        return None

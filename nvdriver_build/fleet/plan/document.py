"""A plan as JSON (docs/contracts.md, `fleet plan --json`)."""

from __future__ import annotations

from typing import Any, Optional

from attrs import asdict

from nvdriver_build.fleet.plan.values import Group, Plan


def plan_document(plan: Plan) -> dict[str, Any]:
    """The document, without `schema`."""
    return {
        "groups": [_group(group) for group in plan.groups],
        "remove": list(plan.remove),
        "remove_jobs": list(plan.remove_jobs),
        "labels": [asdict(label) for label in plan.labels],
        "reasons": [reason.document() for reason in plan.reasons],
    }


def _group(group: Group) -> dict[str, Any]:
    toolkit: Optional[dict[str, Any]] = asdict(group.toolkit) if group.toolkit else None
    return {
        "rhcos_version": group.version,
        "kernel": group.kernel,
        "flavour": group.flavour,
        "arch": group.arch,
        "nodes": len(group.nodes),
        "coming": group.coming,
        "toolkit": toolkit,
        "daemonset": group.daemonset,
        "prebuild": group.prebuild,
        "state": group.state,
        "reasons": [reason.document() for reason in group.reasons],
    }

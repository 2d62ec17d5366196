"""What runs on a node, as the API has it now: pods of others are not followed."""

from __future__ import annotations

from nvdriver_build.fleet.controller.api import Api, Document
from nvdriver_build.fleet.controller.kinds import POD


def pods_on(api: Api, node: str) -> list[Document]:
    """All pods on a node. Raises what the API raises."""
    return [each for page in api.pages(POD, fields=f"spec.nodeName={node}") for each in page.items]

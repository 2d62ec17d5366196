"""A file of many nodes, each as large as a real one, as `oc get nodes -o json` writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Dict

from cluster_objects import GPU, K1, K2, V1, V2, V3, node

KERNELS: Dict[str, str] = {V1: K1, V2: K2, V3: K1, "418.94.202501010000-0": K2}
"""Four versions, and the kernel of each."""
IMAGES = 50
"""A kubelet reports as many (nodeStatusMaxImages)."""


def write_nodes(path: Path, count: int, images: int = IMAGES) -> None:
    """Nodes of the four versions, by turns, with what is reported beside what is read."""
    more = {f"feature.node.kubernetes.io/cpu-cpuid.FEATURE{number}": "true" for number in range(60)}
    template = node("NAME", "VERSION", "KERNEL", labels={**GPU, **more}, notes={"config": "x" * 500})
    names = ["quay.io/openshift-release-dev/ocp-v4.0-art-dev@sha256:" + 64 * "0", "x" * 40]
    template["status"]["images"] = [{"names": names, "sizeBytes": 123456789}] * images
    text = json.dumps(template, indent=4)
    with path.open("w") as file:
        file.write('{\n    "apiVersion": "v1",\n    "items": [\n')
        for number in range(count):
            version = list(KERNELS)[number % len(KERNELS)]
            one = text.replace("NAME", f"node-{number}").replace("VERSION", version)
            file.write((",\n" if number else "") + one.replace("KERNEL", KERNELS[version]))
        file.write('\n    ],\n    "kind": "List"\n}\n')

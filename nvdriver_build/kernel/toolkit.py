"""The release file of the OpenShift Driver Toolkit image.

Format: openshift/driver-toolkit, Dockerfile and manifests; the keys are KERNEL_VERSION, RT_KERNEL_VERSION
and RHEL_VERSION.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Optional

from attrs import frozen

from nvdriver_build.errors import HeadersError

RELEASE_FILE = Path("etc/driver-toolkit-release.json")
_KERNEL_RELEASE = re.compile(r"\d+\.\d+\.\d+\S*")


@frozen
class ToolkitRelease:
    """What a toolkit says of itself. `rt_kernel` is None where the file has nothing usable."""

    kernel: str
    rt_kernel: Optional[str]
    rhel: Optional[str]


def read_toolkit_release(root: Path) -> ToolkitRelease:
    """Read the release file below `root`; raise HeadersError where it is missing or cannot be understood.

    Only KERNEL_VERSION has to be a kernel release: the RT value of real images is at times a package
    manager's complaint (openshift/driver-toolkit 161).
    """
    path = root / RELEASE_FILE
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise HeadersError(
            f"{path} is missing: {root} is not the root of a Driver Toolkit image",
            hint="give the root of a DTK image, or a kernel build tree such as /lib/modules/R/build",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise HeadersError(
            f"{path} cannot be read: {error}", hint="use another Driver Toolkit image"
        ) from error
    kernel = document.get("KERNEL_VERSION") if isinstance(document, dict) else None
    if not isinstance(kernel, str) or not _KERNEL_RELEASE.fullmatch(kernel):
        raise HeadersError(
            f"{path}: KERNEL_VERSION is {kernel!r}, not a kernel release",
            hint="use another Driver Toolkit image",
        )
    return ToolkitRelease(
        kernel, _release(document.get("RT_KERNEL_VERSION")), _text(document.get("RHEL_VERSION"))
    )


def _release(value: object) -> Optional[str]:
    return value if isinstance(value, str) and _KERNEL_RELEASE.fullmatch(value) else None


def _text(value: object) -> Optional[str]:
    return value if isinstance(value, str) and value else None

"""Building in a Driver Toolkit container beside the driver's: two ends and a folder that both see.

    dir_prepared            the DTK container waits for it, as the GPU Operator has it start; written last
    ocp_dtk_entrypoint, nvdriver-build.pyz    what the DTK container then executes
    sources/DIGEST/         a kernel tree to build
    request.json            by the driver's end: what it wants, one attempt
    driver-beat.json        while it waits
    toolkit.json            by the toolkit's end: who it is, or why it can serve nobody
    toolkit-beat.json       while it works, with its progress
    headers/ATTEMPT/        what describes the kernel that was asked for
    result.json             how the attempt of that id ended
    store/                  a store of module sets: what is built, its logs, its locks

Every document appears whole, by rename, and belongs to the attempt or the instance that it names; nothing in
it is ever executed. Either end may start first, die at any moment and come back: a result is believed only if
it names the attempt that was asked for, and a new instance begins with the request that it finds.
"""

from nvdriver_build.toolkit.documents import SAME_VERSION, Order
from nvdriver_build.toolkit.driver_end import Sidecar
from nvdriver_build.toolkit.shared import Shared
from nvdriver_build.toolkit.toolkit_end import Server

__all__ = ["SAME_VERSION", "Order", "Server", "Shared", "Sidecar"]

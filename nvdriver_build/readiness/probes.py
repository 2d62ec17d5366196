"""What Kubernetes asks: has it started, does it hang, is it ready. Each answer has one line that says why."""

from __future__ import annotations

from typing import Callable, NamedTuple

from nvdriver_build.loader.host import Host, loaded_module, missing
from nvdriver_build.readiness.files import READY, Readiness

STALE = 120.0
"""Seconds without a heartbeat after which `run` counts as hung; no step without one takes a tenth of it."""


class Verdict(NamedTuple):
    """The answer of a probe."""

    ok: bool
    why: str


def startup(files: Readiness, host: Host, nvidia_smi: Callable[[], bool]) -> Verdict:
    """Do what the operator's startup probe does: three looks, then write `.driver-ctr-ready`.

    As there, an absent `.driver-daemons-status` is fine. What was written is taken back where readiness was
    withdrawn meanwhile.
    """
    if not (host.sys / "module/nvidia/refcnt").exists():
        return Verdict(False, "the kernel module nvidia is not loaded")
    if files.announced not in (None, READY):
        return Verdict(False, f"the driver is not ready: {files.announced}")
    if not nvidia_smi():
        return Verdict(False, "nvidia-smi failed")
    files.write_ctr_ready()
    if files.announced not in (None, READY):
        files.ctr_ready.unlink(missing_ok=True)
        return Verdict(False, "readiness was withdrawn meanwhile")
    return Verdict(True, "nvidia is loaded, and nvidia-smi succeeds")


def liveness(files: Readiness) -> Verdict:
    """Fail only where `run` hangs, so that its heartbeat has stopped: nothing else is mended by a restart."""
    age = files.heartbeat_age()
    if age is None or age < 0:
        return Verdict(True, "no heartbeat yet")
    if age > STALE:
        return Verdict(False, f"no heartbeat for {age:.0f} s")
    return Verdict(True, f"last heartbeat {age:.0f} s ago")


def readiness(files: Readiness, host: Host) -> Verdict:
    """Ready means announced, and every module live and of the announced build at this moment."""
    status = files.read_status()
    if not files.ready:
        stage = f" (stage {status.stage})" if status and status.stage else ""
        return Verdict(False, f"not announced as ready{stage}")
    if status is None or not status.modules:
        return Verdict(False, f"{files.status_file} names no modules")
    lacking = missing(host, status.modules)
    return Verdict(not lacking, "; ".join(lacking) or f"{len(status.modules)} modules are live")


def peermem(files: Readiness, host: Host) -> Verdict:
    """Do what NVIDIA's probe_nvidia_peermem does: where mlx5_core is loaded, nvidia-peermem has to be.

    Not where the driver came up without it: a restart of its container would mend nothing.
    """
    if loaded_module(host, "mlx5_core") is None:
        return Verdict(True, "mlx5_core is not loaded: nothing is asked of nvidia-peermem")
    lacking, status = missing(host, {"nvidia_peermem": None}), files.read_status()
    if lacking and status and status.peermem_error:
        return Verdict(True, status.peermem_error["message"])
    return Verdict(not lacking, "; ".join(lacking) or "nvidia_peermem is live")

"""What is known of a cluster: frozen values, made by `inventory` from what the API says, read by `plan`.

Nothing in here raises or decides. What could not be understood is a `Reason`, beside what could. Text of
others is bounded and printable; None is 'not known'.
"""

from __future__ import annotations

from typing import Optional

from attrs import frozen

from nvdriver_build.fleet.reasons import Reason


@frozen
class Node:
    """A node. `version` is its RHCOS version (`416.94.202408260940-0`), `kernel` as `uname -r` says it.

    `arch` is `x86_64` or `arm64`, or Kubernetes' own word for another one; `flavour` is `standard`, `rt`,
    `64k` or `debug`. `gpu` is whether a driver of ours belongs here; where something forbids it, `excluded`
    is what. `label` is the value of our own node label, None without it. `boot_id` changes at each boot.
    `updating` is whether the Machine Config Operator is about to change this node. `pool` is the name of
    its MachineConfigPool. `upgrade` is our annotation of that name, empty where only the label is there;
    `kept_out` is the word of others that their drivers are not ours to change.
    """

    name: str
    version: Optional[str]
    kernel: Optional[str]
    arch: Optional[str]
    flavour: str = "standard"
    gpu: bool = False
    excluded: Optional[str] = None
    ready: Optional[bool] = None
    schedulable: bool = True
    boot_id: Optional[str] = None
    label: Optional[str] = None
    updating: bool = False
    pool: Optional[str] = None
    upgrade: Optional[str] = None
    kept_out: Optional[str] = None
    reasons: tuple[Reason, ...] = ()


@frozen
class Tag:
    """A tag of the ImageStream openshift/driver-toolkit.

    `image` is the pull spec that nodes use, None where the tag leads to none. `kernel` and `rt_kernel` are
    the image's labels kernel-version and kernel-rt-version, None where unknown or junk; `archs` those that
    the image is known to be for. `reasons` say what is odd: no image, an import that failed.
    """

    name: str
    image: Optional[str]
    kernel: Optional[str] = None
    rt_kernel: Optional[str] = None
    archs: tuple[str, ...] = ()
    reasons: tuple[Reason, ...] = ()


@frozen
class ImageStream:
    """The Driver Toolkits that the cluster knows. `latest` is the image of `latest`, `streams` those of
    `latest-rhel-N` by their N.
    """

    tags: tuple[Tag, ...] = ()
    latest: tuple[str, ...] = ()
    streams: tuple[tuple[int, str], ...] = ()
    reasons: tuple[Reason, ...] = ()


@frozen
class Pool:
    """A MachineConfigPool: whether it is paused, or updating its nodes now; `stream` as `rhel-10`, where
    named.
    """

    name: str
    paused: bool = False
    updating: bool = False
    stream: Optional[str] = None


@frozen
class ClusterVersion:
    """The OpenShift release that the cluster goes to or has; `progressing` while it is on its way."""

    desired: Optional[str]
    progressing: bool = False


@frozen
class DaemonSet:
    """A driver's DaemonSet. `ours` where we manage it; `version` is the RHCOS version that it is for.

    `pods` counts those that exist, on whatever node; None where its status is not of its present form.
    `driver` is the digest of the driver that its pods get (`names.DRIVER_NOTE`).
    """

    name: str
    namespace: str
    ours: bool
    version: Optional[str] = None
    pods: Optional[int] = None
    desired: Optional[int] = None
    ready: Optional[int] = None
    driver: Optional[str] = None


@frozen
class Job:
    """A prebuild Job of ours. `key` says of what (`plan.prebuild_key`); `state` is `active`, `done` or
    `failed`.
    """

    name: str
    namespace: str
    key: Optional[str]
    state: str
    message: Optional[str] = None


@frozen
class Cluster:
    """All of it. `imagestream` is None where there is none, `pools` empty where unknown.

    `reasons` tell what could not be read at all, such as a node without a name.
    """

    nodes: tuple[Node, ...] = ()
    imagestream: Optional[ImageStream] = None
    cluster_version: Optional[ClusterVersion] = None
    pools: tuple[Pool, ...] = ()
    daemonsets: tuple[DaemonSet, ...] = ()
    jobs: tuple[Job, ...] = ()
    reasons: tuple[Reason, ...] = ()

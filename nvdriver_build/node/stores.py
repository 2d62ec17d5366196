"""The node's own store, and the place where others have put what they built, as configured."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional

from nvdriver_build.commands import Commands
from nvdriver_build.config import Config
from nvdriver_build.obtain import Outside, vouching
from nvdriver_build.registry import Proxies, Registry, open_registry
from nvdriver_build.registry.turns import Board, Either, LeaseBoard, MarkerBoard, Turns, in_cluster
from nvdriver_build.signing import Trust, read_certificate, read_certificates
from nvdriver_build.store import SharedStore, Store


def trust(config: Config) -> Trust:
    """Who may build for this node: as configured, else who signs; SigningError where that cannot be read."""
    if config.trust:
        return Trust(read_certificates(config.trust))
    return Trust((read_certificate(config.sign_cert),) if config.sign_cert else ())


def own_store(config: Config, commands: Commands) -> Store:
    """The node's own store; sets of others in it are asked for their signature each time."""
    return Store(config.store, vouching(trust(config), commands))


def outside(config: Config, commands: Commands) -> Optional[Outside]:
    """What is at NVDRIVER_REGISTRY, if that is set: a registry, or a folder that nodes share."""
    if config.registry is None:
        return None
    if config.registry.startswith("/"):
        return Outside(SharedStore(Path(config.registry), commands.check), trust(config), commands)
    registry = open_registry(
        config.registry,
        commands,
        authority=config.registry_ca,
        auth=config.registry_auth,
        proxies=Proxies(config.https_proxy, config.no_proxy or ()),
    )
    name = config.node_name or os.uname().nodename
    turns = Turns(_board(config, registry, commands), name, check=commands.check)
    return Outside(registry, trust(config), commands, turns)


def _board(config: Config, registry: Registry, commands: Commands) -> Board:
    """Where it stands who builds: Leases, in a pod that may have them, else tags of the registry."""
    marker = MarkerBoard(registry.content)
    cluster = in_cluster(config.kubernetes_host, config.kubernetes_port)
    return Either(LeaseBoard(cluster, check=commands.check), marker) if cluster else marker

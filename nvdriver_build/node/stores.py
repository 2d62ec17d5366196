"""The node's own store, and the place where others have put what they built, as configured."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from nvdriver_build.commands import Commands
from nvdriver_build.config import Config
from nvdriver_build.obtain import Outside, vouching
from nvdriver_build.registry import Proxies, open_registry
from nvdriver_build.signing import Trust, read_certificates
from nvdriver_build.store import Remote, SharedStore, Store


def trust(config: Config) -> Trust:
    """Who may build for this node: as configured, else who signs; SigningError where that cannot be read."""
    place = config.trust or config.sign_cert
    return Trust(read_certificates(place)) if place else Trust()


def own_store(config: Config, commands: Commands) -> Store:
    """The node's own store; sets of others in it are asked for their signature each time."""
    return Store(config.store, vouching(trust(config), commands))


def outside(config: Config, commands: Commands) -> Optional[Outside]:
    """What is at NVDRIVER_REGISTRY, if that is set."""
    remote = _remote(config, commands)
    return Outside(remote, trust(config), commands) if remote else None


def _remote(config: Config, commands: Commands) -> Optional[Remote]:
    if config.registry is None:
        return None
    if config.registry.startswith("/"):
        return SharedStore(Path(config.registry))
    return open_registry(
        config.registry,
        commands,
        authority=config.registry_ca,
        auth=config.registry_auth,
        proxies=Proxies(config.https_proxy, config.no_proxy or ()),
    )

"""Files that appear whole, locks, digests; `archives`: archives unpacked as hostile.

Nothing here knows what a kernel module is.
"""

from nvdriver_build.files.atomic import (
    FULL,
    LockedError,
    exchange,
    lock,
    private_folder,
    publish,
    publish_folder,
    read_plain,
    remove,
    sha256_file,
    sha256_tree,
    sweep,
    sync,
)

__all__ = [
    "FULL",
    "LockedError",
    "exchange",
    "lock",
    "private_folder",
    "publish",
    "publish_folder",
    "read_plain",
    "remove",
    "sha256_file",
    "sha256_tree",
    "sweep",
    "sync",
]

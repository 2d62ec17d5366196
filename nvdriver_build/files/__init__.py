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
    remove,
    sha256_file,
    sha256_tree,
    sweep,
    sync,
)
from nvdriver_build.files.plain import copy_plain, put_plain, read_plain, same_plain

__all__ = [
    "FULL",
    "LockedError",
    "copy_plain",
    "exchange",
    "lock",
    "private_folder",
    "publish",
    "publish_folder",
    "put_plain",
    "read_plain",
    "remove",
    "same_plain",
    "sha256_file",
    "sha256_tree",
    "sweep",
    "sync",
]

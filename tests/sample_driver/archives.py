"""The sample driver as archives: tarballs, a self-extracting `.run`, and archives that mean harm."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import tarfile
from pathlib import Path
from typing import Callable, Dict

import zstandard

_RUN_HEADER = """\
#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Sample driver for tests: extracts itself as NVIDIA's .run does.
label="NVIDIA Accelerated Graphics Driver for Linux-x86_64"
version=@VERSION@
md5=@MD5@
lines=@LINES@
target=$(basename "$0" .run)
extract=n
while [ $# -gt 0 ]; do
    case "$1" in
    -x|--extract-only) extract=y ;;
    --target) target=$2; shift ;;
    --target=*) target=${1#--target=} ;;
    -v|--version) echo "$label $version"; exit 0 ;;
    -i|--info) echo "Identification: $label"; echo "Version: $version"; exit 0 ;;
    -s|--silent) ;;
    *) echo "Unrecognized flag : $1" >&2; exit 1 ;;
    esac
    shift
done
if [ $extract = n ]; then
    echo "The sample driver cannot be installed; use -x." >&2
    exit 1
fi
if [ -e "$target" ]; then
    echo "The target '$target' exists already." >&2
    exit 1
fi
echo "Creating directory $target"
printf "Verifying archive integrity... "
if [ "$(tail -n +$((lines + 1)) "$0" | md5sum | cut -d ' ' -f 1)" != $md5 ]; then
    echo "Error in MD5 checksums: the archive is damaged." >&2
    exit 2
fi
echo "OK"
mkdir -p "$target" || exit 1
echo "Uncompressing $label $version"
tail -n +$((lines + 1)) "$0" | tar -xJ --no-same-owner -C "$target" || exit 1
exit 0
"""


def pack(root: Path, archive: Path) -> Path:
    """Pack the folder `root` under its own name into `archive`: `.tar` or `.tar.{gz,xz,zst}`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(root, arcname=root.name)
    archive.write_bytes(_COMPRESS[archive.suffix](buffer.getvalue()))
    return archive


def pack_run(root: Path, run: Path, version: str) -> Path:
    """Make the self-extracting file `run` of the folder `root`, as NVIDIA's: `sh RUN -x --target DIR`.

    It refuses a target that exists, an unknown option (exit 1) and a damaged payload (exit 2). Equal
    folders give equal files.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz", preset=1) as tar:
        for entry in sorted(root.iterdir()):
            tar.add(entry, arcname=entry.name, filter=_of_no_time)
    payload = buffer.getvalue()
    header = _RUN_HEADER.replace("@VERSION@", version)
    header = header.replace("@MD5@", hashlib.md5(payload).hexdigest())
    header = header.replace("@LINES@", str(header.count("\n")))
    run.write_bytes(header.encode() + payload)
    run.chmod(0o755)
    return run


def _of_no_time(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mtime, member.uid, member.gid, member.uname, member.gname = 0, 0, 0, "root", "root"
    return member


def pack_escaping(archive: Path, way: str) -> Path:
    """Make an archive with one good file and a member that leaves the folder; `way` is a key of `ESCAPES`.

    Where it succeeds, the file `escaped` with the content `evil` is beside the folder that it is unpacked to
    (`hardlink`: only if there was such a file), beside the archive (`absolute`), or a device node is in the
    folder (`device`).
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        _add_file(tar, "driver/kernel-open/Kbuild", b"good")
        ESCAPES[way](tar, archive.resolve().parent)
    archive.write_bytes(_COMPRESS[archive.suffix](buffer.getvalue()))
    return archive


def _escape_dotdot(tar: tarfile.TarFile, beside: Path) -> None:
    _add_file(tar, "driver/../../escaped", b"evil")


def _escape_absolute(tar: tarfile.TarFile, beside: Path) -> None:
    _add_file(tar, str(beside / "escaped"), b"evil")


def _escape_symlink(tar: tarfile.TarFile, beside: Path) -> None:
    _add_link(tar, "driver/out", "../..", tarfile.SYMTYPE)
    _add_file(tar, "driver/out/escaped", b"evil")


def _escape_hardlink(tar: tarfile.TarFile, beside: Path) -> None:
    _add_link(tar, "driver/out", "../escaped", tarfile.LNKTYPE)
    _add_file(tar, "driver/out", b"evil")


def _escape_device(tar: tarfile.TarFile, beside: Path) -> None:
    node = tarfile.TarInfo("driver/mem")
    node.type, node.devmajor, node.devminor = tarfile.CHRTYPE, 1, 1
    tar.addfile(node)


def _add_file(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _add_link(tar: tarfile.TarFile, name: str, target: str, kind: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    tar.addfile(member)


ESCAPES: Dict[str, Callable[[tarfile.TarFile, Path], None]] = {
    "dotdot": _escape_dotdot,
    "absolute": _escape_absolute,
    "symlink": _escape_symlink,
    "hardlink": _escape_hardlink,
    "device": _escape_device,
}
_COMPRESS: Dict[str, Callable[[bytes], bytes]] = {
    ".tar": lambda data: data,
    ".gz": lambda data: gzip.compress(data, 1),
    ".xz": lambda data: lzma.compress(data, preset=1),
    ".zst": lambda data: zstandard.ZstdCompressor(level=1).compress(data),
}

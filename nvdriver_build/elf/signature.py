"""The signature at the end of a module.

Its layout is in include/linux/module_signature.h, scripts/sign-file.c writes it: the signature, twelve bytes
that describe it, a magic line. Kernels before 4.3 wrote signer and key id as plain text instead of PKCS#7.
"""

from __future__ import annotations

import struct
from typing import IO, Any, Optional, Tuple

from attrs import frozen

from nvdriver_build.elf.content import Damaged, read_at, text
from nvdriver_build.elf.facts import Signature

_MAGIC = b"~Module signature appended~\n"
_INFO = struct.Struct(">BBBBB3xI")
_PKCS7 = 2
_MAX_SIZE = 256 * 1024
"""Bytes of a signature; one with several embedded certificates has a few thousand."""
_OLD_HASHES = ("md4", "md5", "sha1", "rmd160", "sha256", "sha384", "sha512", "sha224", "sm3")
"""enum hash_algo of include/crypto/hash_info.h, as the old form counts them."""


@frozen
class _Located:
    """What lies behind a module: where it starts, of which kind it is, its parts."""

    start: int
    kind: int
    hash: int
    signer: bytes
    key: bytes
    data: bytes


def read_signature(stream: IO[bytes], size: int) -> Tuple[int, Optional[Signature]]:
    """Where the module proper ends, and its signature if there is one; raises Damaged."""
    found = _locate(stream, size)
    if found is None:
        return size, None
    if found.kind != _PKCS7:
        return found.start, _old(found.signer, found.key, found.hash)
    return found.start, _pkcs7(found.data)


def read_appended(stream: IO[bytes], size: int) -> Tuple[int, Optional[bytes]]:
    """Where the module proper ends, and the DER of its PKCS#7 signature if there is one; raises Damaged."""
    found = _locate(stream, size)
    if found is None:
        return size, None
    return found.start, found.data if found.kind == _PKCS7 else None


def as_appended(signature: bytes) -> bytes:
    """The DER of a PKCS#7 signature as it stands behind a module."""
    return signature + _INFO.pack(0, 0, _PKCS7, 0, 0, len(signature)) + _MAGIC


def _locate(stream: IO[bytes], size: int) -> Optional[_Located]:
    tail = _INFO.size + len(_MAGIC)
    if size < tail or read_at(stream, size - len(_MAGIC), len(_MAGIC)) != _MAGIC:
        return None
    description = read_at(stream, size - tail, _INFO.size)
    algorithm, digest, kind, signer_size, key_size, length = _INFO.unpack(description)
    start = size - tail - length - signer_size - key_size
    if start <= 0 or length > _MAX_SIZE:
        raise Damaged(f"its signature claims {length} of its {size} bytes")
    if kind == _PKCS7 and (algorithm or digest or signer_size or key_size):
        raise Damaged("its signature is described wrongly")
    data = read_at(stream, start, signer_size + key_size + length)
    key = data[signer_size : signer_size + key_size]
    return _Located(start, kind, digest, data[:signer_size], key, data[signer_size + key_size :])


def _old(signer: bytes, key: bytes, digest: int) -> Signature:
    return Signature(
        signer=text(signer) or None,
        issuer=None,
        serial=key.hex() or None,
        hash=_OLD_HASHES[digest] if digest < len(_OLD_HASHES) else None,
    )


def _pkcs7(der: bytes) -> Signature:
    from asn1crypto import cms

    try:
        return _of_signer(cms.ContentInfo.load(der, strict=True)["content"]["signer_infos"][0])
    except Exception as error:  # asn1crypto means to raise ValueError, damaged DER brings out many more
        raise Damaged(f"its signature is not PKCS#7: {error}") from error


def _of_signer(info: Any) -> Signature:
    algorithm = info["digest_algorithm"]["algorithm"].native.replace("_", "-")
    if info["sid"].name != "issuer_and_serial_number":
        return Signature(signer=None, issuer=None, serial=None, hash=algorithm)
    issuer, serial = info["sid"].chosen["issuer"], abs(info["sid"].chosen["serial_number"].native)
    return Signature(
        signer=_common_name(issuer),
        issuer=issuer.human_friendly or None,
        serial=serial.to_bytes((serial.bit_length() + 7) // 8 or 1, "big").hex(),
        hash=algorithm,
    )


def _common_name(name: Any) -> Optional[str]:
    attributes = (attribute for relative in name.chosen for attribute in relative)
    return next((str(a["value"].native) for a in attributes if a["type"].native == "common_name"), None)

"""What a compiled module says about its own build: the notes that compiler and linker leave in an ELF file."""

from __future__ import annotations

import struct

_BUILD_ID_NOTE = 3


def toolchain(content: bytes) -> dict[str, str]:
    """The compilers (``toolchain``) and the linker's ``build_id`` that an ELF file of 64 bits names, if any."""
    try:
        sections = _sections(content)
    except (struct.error, ValueError, OverflowError):
        return {}
    found = {}
    named = sections.get(".comment", b"").decode("ascii", "replace").split("\0")
    if compilers := list(dict.fromkeys(filter(None, named))):
        found["toolchain"] = "; ".join(compilers)
    if build_id := _build_id(sections.get(".note.gnu.build-id", b"")):
        found["build_id"] = build_id
    return found


def _sections(content: bytes) -> dict[str, bytes]:
    if content[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a little-endian ELF file of 64 bits")
    (table,) = struct.unpack_from("<Q", content, 0x28)
    size, count, names = struct.unpack_from("<HHH", content, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", content, table + i * size) for i in range(count)]
    if names >= count:
        raise ValueError("an ELF file without section names")
    start = headers[names][4]

    def name(offset: int) -> str:
        return content[start + offset : content.index(b"\0", start + offset)].decode("ascii")

    return {name(h[0]): content[h[4] : h[4] + h[5]] for h in headers}


def _build_id(note: bytes) -> str:
    if len(note) < 12:
        return ""
    owner, size, kind = struct.unpack_from("<III", note)
    start = 12 + -(-owner // 4) * 4
    return note[start : start + size].hex() if kind == _BUILD_ID_NOTE else ""

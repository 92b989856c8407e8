"""The files of a run held together: a manifest of hashes, and one archive that is the same for the same files."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short

from ...untrusted import is_inside, read_bytes, read_most

MANIFEST = "SHA256SUMS"
TARBALL = "bundle.tar.gz"
TOP = "conformance"  # the folder inside the archive
SIZE_LIMIT = 256 << 20  # bytes, of an archive before and after unpacking, and of all files of a folder
FILE_LIMIT = 1000
_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")
_ALL = re.compile(r"# all: ([0-9a-f]{64})")
_EXPECTED = re.compile(r"[0-9a-fA-F]{64}")


class BundleError(ValueError):
    """A bundle cannot be read, or is not what its manifest says."""


def manifest(files: Mapping[str, bytes]) -> str:
    """The text of ``SHA256SUMS``: one hash over all, then a line a file, as ``sha256sum --check`` reads them."""
    lines = "".join(f"{_hash(files[name])}  {name}\n" for name in sorted(files))
    return f"# all: {_hash(lines.encode())}\n{lines}"


def pack(files: Mapping[str, bytes]) -> bytes:
    """The archive: names sorted, no times and no owners, each member a header in the basic format and its content."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name in sorted(files):
            member = tarfile.TarInfo(f"{TOP}/{name}")
            member.size = len(files[name])
            archive.addfile(member, io.BytesIO(files[name]))
    return packed.getvalue()


def load(path: Path) -> dict[str, bytes]:
    """The files of a bundle by name: those of an archive, or those of a folder that its manifest names.

    Nothing is written anywhere, no more than ``SIZE_LIMIT`` bytes are read, and an archive is refused that has what
    :func:`pack` does not write: other names, links, devices, holes, extended headers, or something behind the end.

    Raises:
        BundleError: It is neither, or a damaged or hostile one.
        OSError: It cannot be read.
    """
    try:
        if path.is_dir():
            return _load_folder(path)
        with gzip.open(io.BytesIO(read_bytes(path, SIZE_LIMIT))) as compressed:
            content = read_most(compressed, SIZE_LIMIT, f"{path}, unpacked,")
        return _load_archive(path, memoryview(content))
    except BundleError:
        raise
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, OverflowError) as error:
        raise BundleError(f"{path} is not a bundle, or a damaged one: {error}") from error


def is_compressed(path: Path) -> bool:
    """Whether a file begins as an archive of :func:`pack` does."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _load_folder(folder: Path) -> dict[str, bytes]:
    listed = folder / MANIFEST
    if not listed.is_file():
        raise BundleError(f"{folder} holds no {MANIFEST}: it is not the folder of a run")
    files = {MANIFEST: read_bytes(listed, SIZE_LIMIT)}
    room = SIZE_LIMIT - len(files[MANIFEST])
    for name in _parse(files[MANIFEST], folder):
        if (folder / name).is_file():
            files[name] = read_bytes(folder / name, room)
            room -= len(files[name])
    return files


def _load_archive(path: Path, content: memoryview) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for member, start in _members(content):
        top, _, name = member.name.partition("/")
        if member.type != tarfile.REGTYPE or top != TOP or not is_inside(name) or name in files:
            raise BundleError(f"{path} has a member that no bundle has: {short(member.name)}")
        if len(files) == FILE_LIMIT:
            raise BundleError(f"{path} has more than {FILE_LIMIT} members, which no bundle has")
        files[name] = bytes(content[start : start + member.size])
    if MANIFEST not in files:
        raise BundleError(f"{path} holds no {TOP}/{MANIFEST}: it is not the bundle of a run")
    return files


def _members(content: memoryview) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """The members of an archive, and where each one's content begins, by the members' own headers alone.

    ``tarfile`` would also follow what one header says of the next: longer names, sizes, and maps of holes, by which a
    few bytes stand for a file of any size.

    Raises:
        ValueError: A member is cut off, or something follows the end.
        tarfile.HeaderError: What should be a header is none.
    """
    at, block = 0, tarfile.BLOCKSIZE
    while any(header := bytes(content[at : at + block])):
        member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        at += block
        if not 0 <= member.size <= len(content) - at:
            raise ValueError(f"{short(member.name)} is said to have {member.size} bytes, {len(content) - at} follow")
        yield member, at
        at += -(-member.size // block) * block
    if any(bytes(content[at:])) or at >= len(content):
        raise ValueError("it has no end, or something behind it")


def _parse(text: bytes, source: Path) -> dict[str, str]:
    """Hash by name, as a manifest states them."""
    lines = text.decode("utf-8", "replace").splitlines()
    found = [_LINE.fullmatch(line) for line in lines[1:]]
    if not lines or not _ALL.fullmatch(lines[0]) or not all(m and is_inside(m[2]) for m in found):
        raise BundleError(f"the {MANIFEST} of {source} is not a manifest of sbhal conformance")
    stated = {m[2]: m[1] for m in found if m}
    if len(stated) != len(found) or len(found) > FILE_LIMIT:
        raise BundleError(f"the {MANIFEST} of {source} names a file twice, or more than {FILE_LIMIT}")
    return stated


@dataclass(frozen=True)
class Verification:
    """What a look at every hash found.

    Attributes:
        sha256: The hash over all files, as the manifest gives it: what to publish beside a bundle.
        files: How many files the manifest names.
        problems: What does not agree with it.
    """

    sha256: str
    files: int
    problems: list[str]


def verify(path: Path, expected: str | None = None) -> Verification:
    """Compares the files of a bundle with its manifest, and a folder's with those of the archive that is beside them.

    Args:
        path: An archive, or the folder of a run.
        expected: The hash over all files that was published, 64 hexadecimal digits; any if None.

    Raises:
        ValueError: ``expected`` is something else.
        BundleError: It is not a bundle, or one that cannot be read.
        OSError: There is no such file.
    """
    if expected is not None and not _EXPECTED.fullmatch(expected):
        raise ValueError(f"verify: sha256 is {expected!r}, expected the 64 hexadecimal digits that were published")
    files = load(path)
    found = check(files, path, expected)
    if path.is_dir() and (path / TARBALL).exists():
        found.problems.extend(_differences(path / TARBALL, files[MANIFEST]))
    return found


def _differences(archive: Path, listed: bytes) -> Iterator[str]:
    """What is wrong with an archive that is to hold the files that a manifest lists."""
    try:
        files = load(archive)
        found = check(files, archive)
    except BundleError as error:
        yield str(error)
        return
    if files[MANIFEST] != listed:
        yield f"{archive.name} is of another run, its hash over all is {found.sha256}"
    yield from (f"in {archive.name}, {problem}" for problem in found.problems)


def check(files: Mapping[str, bytes], source: Path, expected: str | None = None) -> Verification:
    """As :func:`verify`, for files that were loaded."""
    text = files[MANIFEST]
    stated = _parse(text, source)
    head, _, lines = text.decode("utf-8", "replace").partition("\n")
    whole = head.removeprefix("# all: ")
    problems = []
    if _hash(lines.encode()) != whole:
        problems.append(f"{MANIFEST} is not what its hash over all says")
    if expected is not None and expected.lower() != whole:
        problems.append(f"the hash over all is {whole}, expected {expected}")
    for name in sorted(stated.keys() | files.keys() - {MANIFEST}):
        if name not in files:
            problems.append(f"{name} is missing")
        elif name not in stated:
            problems.append(f"{name} is not in {MANIFEST}")
        elif _hash(files[name]) != stated[name]:
            problems.append(f"{name} was changed")
    return Verification(whole, len(stated), problems)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

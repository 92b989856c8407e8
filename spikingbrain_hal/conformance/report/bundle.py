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
from pathlib import Path, PurePosixPath

MANIFEST = "SHA256SUMS"
TARBALL = "bundle.tar.gz"
TOP = "conformance"  # the folder inside the archive
SIZE_LIMIT = 256 << 20
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
    """The archive: names sorted, no times and no owners."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name in sorted(files):
            member = tarfile.TarInfo(f"{TOP}/{name}")
            member.size = len(files[name])
            archive.addfile(member, io.BytesIO(files[name]))
    return packed.getvalue()


def load(path: Path) -> dict[str, bytes]:
    """The files of a bundle by name: those of an archive, or those of a folder that its manifest names.

    Nothing is written anywhere, and names that lead out of the bundle are refused.

    Raises:
        BundleError: It is neither, or a damaged or hostile one.
        OSError: It cannot be read.
    """
    if path.is_dir():
        return _load_folder(path)
    try:
        with gzip.open(path) as compressed:
            content = compressed.read(SIZE_LIMIT + 1)
        if len(content) > SIZE_LIMIT:
            raise BundleError(f"{path} unpacks to more than {SIZE_LIMIT >> 20} MiB, which no bundle does")
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            return _load_archive(path, archive)
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
    text = listed.read_bytes()
    names = [name for name in _parse(text, folder) if (folder / name).is_file()]
    return {MANIFEST: text} | {name: (folder / name).read_bytes() for name in names}


def _load_archive(path: Path, archive: tarfile.TarFile) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for member in archive:
        top, _, name = member.name.partition("/")
        content = archive.extractfile(member) if member.type == tarfile.REGTYPE else None
        if content is None or top != TOP or not _is_inside(name) or name in files:
            raise BundleError(f"{path} has a member that no bundle has: {member.name!r}")
        files[name] = content.read()
    if MANIFEST not in files:
        raise BundleError(f"{path} holds no {TOP}/{MANIFEST}: it is not the bundle of a run")
    return files


def _is_inside(name: str) -> bool:
    """Whether a name stays within the folder it is relative to, and is written in one way only."""
    path = PurePosixPath(name)
    plain = name == str(path) and "\\" not in name and name.isprintable()
    return plain and not path.is_absolute() and ".." not in path.parts and name != "."


def _parse(text: bytes, source: Path) -> dict[str, str]:
    """Hash by name, as a manifest states them."""
    lines = text.decode("utf-8", "replace").splitlines()
    found = [_LINE.fullmatch(line) for line in lines[1:]]
    if not lines or not _ALL.fullmatch(lines[0]) or not all(m and _is_inside(m[2]) for m in found):
        raise BundleError(f"the {MANIFEST} of {source} is not a manifest of sbhal conformance")
    return {m[2]: m[1] for m in found if m}


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

"""Bundles: the same for the same files, checked by anyone, and read without trust."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
import tarfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sample_reports import every_status
from spikingbrain_hal.conformance import report
from spikingbrain_hal.conformance.report import bundle
from spikingbrain_hal.conformance.report.bundle import MANIFEST, TARBALL, BundleError, manifest, pack
from spikingbrain_hal.conformance.report.reading import ReportError

FILES = {"report.json": b"{}", "log.txt": b"all is well\n", "logs/one.txt": b""}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    report.write(every_status(), folder, {"waivers.toml": b"# none\n"})
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "copy")


def archive(members: list[tarfile.TarInfo], content: bytes = b"text") -> bytes:
    """A compressed archive of these members, with a manifest of no files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        listed = tarfile.TarInfo(f"conformance/{MANIFEST}")
        text = manifest({}).encode()
        listed.size = len(text)
        tar.addfile(listed, io.BytesIO(text))
        for member in members:
            member.size = len(content) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def named(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


def test_a_run_is_bundled_whole(run: Path) -> None:
    with tarfile.open(run / TARBALL) as tar:
        names = tar.getnames()
        assert {m.mtime for m in tar.getmembers()} == {0}
        contents = {name: tar.extractfile(name).read() for name in names}  # type: ignore[union-attr]
    kept = ["environment.json", "junit.xml", "log.txt", "report.html", "report.json", "waivers.toml"]
    assert names == [f"conformance/{name}" for name in [MANIFEST, *kept]]
    assert all(content == (run / name.removeprefix("conformance/")).read_bytes() for name, content in contents.items())
    for source in (run, run / TARBALL):
        found = report.verify(source)
        assert (found.files, found.problems) == (len(kept), [])
    assert sorted(p.name for p in run.iterdir()) == sorted([*kept, MANIFEST, TARBALL])


def test_the_same_files_make_the_same_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    first = pack(FILES)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    assert pack(dict(reversed(FILES.items()))) == first
    assert manifest(dict(reversed(FILES.items()))) == manifest(FILES)
    assert pack(FILES | {"log.txt": b"all is well"}) != first


def test_anyone_can_check_the_manifest(copy: Path) -> None:
    def check() -> int:
        return subprocess.run(["sha256sum", "--check", "--strict", MANIFEST], cwd=copy, capture_output=True).returncode

    assert check() == 0
    (copy / "log.txt").write_text("nothing happened\n")
    assert check() == 1


def test_a_bundle_of_another_hash_is_told(run: Path) -> None:
    published = report.verify(run).sha256
    assert report.verify(run / TARBALL, published).problems == []
    (problem,) = report.verify(run / TARBALL, "0" * 64).problems
    assert published in problem
    assert report.verify(run, published.upper()).problems == []


@pytest.mark.parametrize("given", ["", " ", "3db0", "0" * 63, "0" * 65, "g" * 64, "0" * 64 + "\n"])
def test_what_is_no_hash_verifies_nothing(given: str, run: Path) -> None:
    with pytest.raises(ValueError, match=r"verify: sha256 is .* expected the 64 hexadecimal digits"):
        report.verify(run, given)


def test_the_archive_in_a_folder_is_of_its_files(copy: Path, tmp_path: Path) -> None:
    """It is what gets published, so a folder is not unchanged if only its files are."""
    archive = copy / TARBALL
    report.write(every_status(), tmp_path / "other")
    other = (tmp_path / "other" / TARBALL).read_bytes()
    archive.write_bytes(other)
    of_other = report.verify(tmp_path / "other").sha256
    assert report.verify(copy).problems == [f"{TARBALL} is of another run, its hash over all is {of_other}"]
    files = bundle.load(copy)
    archive.write_bytes(pack(files | {"log.txt": b"better"}))
    assert report.verify(copy).problems == [f"in {TARBALL}, log.txt was changed"]
    archive.write_bytes(other[:-9])
    (problem,) = report.verify(copy).problems
    assert f"{TARBALL} is not a bundle, or a damaged one" in problem
    archive.unlink()
    assert report.verify(copy).problems == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda f: (f / "report.json").write_bytes((f / "report.json").read_bytes() + b" "), "report.json was changed"),
        (lambda f: (f / "junit.xml").unlink(), "junit.xml is missing"),
        (
            lambda f: (f / MANIFEST).write_text((f / MANIFEST).read_text().replace("log.txt", "lag.txt")),
            "not what its hash over all says",
        ),
    ],
)
def test_a_changed_folder_is_told(change: Callable[[Path], object], problem: str, copy: Path) -> None:
    change(copy)
    assert any(problem in found for found in report.verify(copy).problems)
    with pytest.raises(ReportError, match="is not what its manifest says"):
        report.read(copy)


def test_a_changed_archive_is_told(tmp_path: Path) -> None:
    path = tmp_path / "b.tar.gz"
    listed = {MANIFEST: manifest(FILES).encode()}
    path.write_bytes(pack(FILES | listed))
    assert report.verify(path).problems == []
    path.write_bytes(pack(FILES | listed | {"log.txt": b"better", "more.txt": b""}))
    assert report.verify(path).problems == ["log.txt was changed", f"more.txt is not in {MANIFEST}"]


def test_other_files_of_a_folder_are_left_alone(run: Path, copy: Path) -> None:
    (copy / "notes.txt").write_text("mine")
    assert report.verify(copy).problems == []
    report.write(every_status(), copy)
    assert (copy / "notes.txt").read_text() == "mine"
    assert "notes.txt" not in bundle.load(copy / TARBALL)
    assert "waivers.toml" not in bundle.load(copy)  # of an earlier run; it is no evidence for this one


def test_a_failed_write_leaves_the_earlier_file(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        report.write(every_status(), copy)
    assert report.verify(copy).problems == []
    assert not list(copy.glob(".*"))


def test_attached_files_cannot_take_the_place_of_evidence(tmp_path: Path) -> None:
    for name in ("report.json", MANIFEST, TARBALL):
        with pytest.raises(ValueError, match="which every run writes itself"):
            report.write(every_status(), tmp_path, {name: b"{}"})


# ---- nonsense


@pytest.mark.parametrize(
    "member",
    [
        named("conformance/../../etc/passwd"),
        named("conformance//etc/passwd"),
        named("/etc/passwd"),
        named("../report.json"),
        named("report.json"),
        named("elsewhere/report.json"),
        named("conformance/."),
        named("conformance/a/./b"),
        named("conformance/a\\b"),
        named("conformance/a\nb"),
        named(f"conformance/{MANIFEST}"),
        named("conformance/report.json", tarfile.SYMTYPE, "/etc/passwd"),
        named("conformance/report.json", tarfile.LNKTYPE, "/etc/passwd"),
        named("conformance/report.json", tarfile.CHRTYPE),
        named("conformance/report.json", tarfile.FIFOTYPE),
        named("conformance/logs", tarfile.DIRTYPE),
    ],
    ids=lambda m: f"{m.name!r}-{m.type!r}",
)
def test_an_archive_that_reaches_out_is_refused(member: tarfile.TarInfo, tmp_path: Path) -> None:
    path = tmp_path / "b.tar.gz"
    path.write_bytes(archive([member]))
    with pytest.raises(BundleError, match="has a member that no bundle has"):
        bundle.load(path)
    assert [p.name for p in tmp_path.iterdir()] == ["b.tar.gz"]


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", ""])
def test_a_manifest_that_reaches_out_is_refused(name: str, copy: Path) -> None:
    (copy / MANIFEST).write_text(f"# all: {'0' * 64}\n{'0' * 64}  {name}\n")
    with pytest.raises(BundleError, match="is not a manifest"):
        bundle.load(copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a bundle"),
        (b"\x1f\x8b", "not a bundle"),
        (b"{}", "not a bundle"),
        (gzip.compress(b"", mtime=0), "not a bundle"),
        (gzip.compress(b"x" * 5000, mtime=0), "not a bundle"),
        (pack(FILES), "holds no conformance/SHA256SUMS"),
        (pack({MANIFEST: b"abc"}), "is not a manifest"),
        (pack({MANIFEST: b""}), "is not a manifest"),
        (pack({MANIFEST: b"\xff\xfe"}), "is not a manifest"),
    ],
)
def test_what_is_no_bundle_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "b.tar.gz"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=message):
        report.verify(path)
    with pytest.raises(ReportError):
        report.read(path)


def test_an_archive_that_grows_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "b.tar.gz"
    path.write_bytes(pack({MANIFEST: manifest({}).encode(), "zeros": bytes(3 << 20)}))
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(bundle, "SIZE_LIMIT", 1 << 20)
    with pytest.raises(BundleError, match="unpacked, holds more than 1,048,576 bytes"):
        bundle.load(path)


def sparse(size: int) -> bytes:
    """An archive of one member that says, in an extended header, that all of it is one hole."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        hole = tarfile.TarInfo("conformance/report.json")
        hole.pax_headers = {"GNU.sparse.map": f"{size},0", "GNU.sparse.size": str(size), "GNU.sparse.numblocks": "1"}
        tar.addfile(hole)
    return packed.getvalue()


def test_a_few_bytes_do_not_stand_for_many(tmp_path: Path) -> None:
    """Neither a hole nor a size in an extended header is believed: what is read is what is there."""
    path = tmp_path / "b.tar.gz"
    path.write_bytes(sparse(700 << 20))
    assert path.stat().st_size < 500
    tracemalloc.start()
    with pytest.raises(BundleError, match="has a member that no bundle has"):
        bundle.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def header_of_size(size: int) -> bytes:
    """The first block of a member, with a size that no writer would write."""
    member = tarfile.TarInfo(f"conformance/{MANIFEST}")
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


MANY = {MANIFEST: manifest({}).encode(), **{f"logs/{i}": b"" for i in range(bundle.FILE_LIMIT)}}
ENDED = gzip.decompress(pack({MANIFEST: manifest({}).encode()}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header_of_size(-1024) + bytes(1024), "is said to have -1024 bytes, 1024 follow"),
        (header_of_size(1 << 50) + bytes(1024), "is said to have 1125899906842624 bytes"),
        (header_of_size(2000) + bytes(1024), "is said to have 2000 bytes, 1024 follow"),
        (ENDED + header_of_size(0), "something behind it"),
        (ENDED + b"x", "something behind it"),
        (ENDED.rstrip(b"\0"), "is said to have|no end"),
        (gzip.decompress(pack(MANY)), f"more than {bundle.FILE_LIMIT} members"),
    ],
    ids=["negative", "huge", "cut off", "second archive", "trailing byte", "no end", "many members"],
)
def test_an_archive_is_what_its_own_bytes_say(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "b.tar.gz"
    path.write_bytes(gzip.compress(content, mtime=0))
    with pytest.raises(BundleError, match=message):
        bundle.load(path)


def test_a_folder_is_read_within_the_same_bounds(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "log.txt").open("wb").truncate(1 << 40)  # a hole, too
    monkeypatch.setattr(bundle, "SIZE_LIMIT", 1 << 20)
    with pytest.raises(BundleError, match=r"log\.txt holds more than [\d,]+ bytes"):
        bundle.load(copy)
    listed = (copy / MANIFEST).read_text().splitlines(keepends=True)
    (copy / MANIFEST).write_text("".join([*listed, listed[-1]]))
    with pytest.raises(BundleError, match="names a file twice"):
        bundle.load(copy)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_archive_is_refused_or_told(data: st.DataObject, run: Path, tmp_path: Path) -> None:
    """Cut off, bytes changed inside the compressed stream, or inside the archive: never another exception."""
    path = tmp_path / "damaged.tar.gz"
    content = bytearray((run / TARBALL).read_bytes())
    inside = data.draw(st.booleans(), "inside")
    content = bytearray(gzip.decompress(content)) if inside else content
    at = data.draw(st.integers(0, len(content) - 1), "at")
    if data.draw(st.booleans(), "cut"):
        del content[at:]
    else:
        content[at] ^= data.draw(st.integers(1, 255), "with")
    path.write_bytes(gzip.compress(content, mtime=0) if inside else content)
    try:
        problems = report.verify(path).problems
    except BundleError:
        return
    if bundle.load(path) != bundle.load(run / TARBALL):
        assert problems

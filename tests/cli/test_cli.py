"""The command ``sbhal``."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE

import pytest
from typer.testing import CliRunner

from spikingbrain_hal import register_backend, unregister_backend
from spikingbrain_hal.backend import Backend, DeviceProperties, Kernel
from spikingbrain_hal.cli.app import app
from spikingbrain_hal.cli.doctor import openmp_runtimes
from spikingbrain_hal.conformance.report import bundle
from spikingbrain_hal.conformance.run.journal import FORMAT, NAME
from spikingbrain_hal.conformance.run.suite import problems_of
from spikingbrain_hal.testing import python_backend

COMMAND = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
QUICK = ("--profile", "quick", "--no-bench", "--seed", "5")
pytestmark = pytest.mark.usefixtures("own_selection")  # a command selects for the process that it expects to end


def test_conformance_writes_a_report_and_says_pass(tmp_path: Path) -> None:
    done = COMMAND.invoke(
        app, ["conformance", "--backend", "cpu", "--op", "spike_collapse", *QUICK, "--out", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    assert "PASS" in done.output
    assert "seed 5" in done.output
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["passed"]
    assert data["seed"] == 5
    assert data["device"]["instruction set"]
    assert {c["op"] for c in data["cases"]} == {"spike_collapse"}
    assert "Backend cpu" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "junit.xml").exists()


def test_conformance_of_one_case(tmp_path: Path) -> None:
    case = "spike_collapse/values/int8/S4-40-coding=bitwise"
    done = COMMAND.invoke(app, ["conformance", "--backend", "cpu", "--case", case, *QUICK, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert [c["id"] for c in json.loads((tmp_path / "report.json").read_text())["cases"]] == [case]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--backend", "cpu", "--case", "nothing like it"), "nothing would be run"),
        (("--backend", "cpu", "--op", "atention"), "no operator 'atention'"),
        (("--backend", "cpu", "--profile", "slow"), "no profile 'slow'"),
        (("--backend", "gpu"), "no backend 'gpu'"),
        (("--backend", "cpu", "--import", "no_such_module"), "no_such_module"),
        (("--backend", "reference"), "'reference' is no backend: kernels are judged by it. Installed: "),
        (("--backend", "cpu", "--waivers", "nosuch.toml"), "waivers nosuch.toml: No such file or directory"),
    ],
)
def test_a_run_of_nothing_fails(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = COMMAND.invoke(app, ["conformance", *arguments, "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert message in done.output
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_one_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    arguments = ["--backend", "cpu", "--case", "spike_encode/values/float32/4-K128", *QUICK, "--out"]
    for out, message in (
        (file, f"nothing was run: --out {file} is a file, expected the folder for the report\n"),
        (file / "deep", f"no report was written: {file / 'deep'}: Not a directory\n"),
    ):
        done = COMMAND.invoke(app, ["conformance", *arguments, str(out)])
        assert isinstance(done.exception, SystemExit), done.exception
        assert (done.exit_code, done.output[-len(message) :]) == (2, message)
    assert file.read_text() == "mine"


@pytest.mark.parametrize(("after", "code"), [("", 0), ("os._exit(3)", 1)], ids=["lives", "dies at opening"])
def test_waivers_are_those_that_the_run_began_with(
    after: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, text = tmp_path / "known.toml", b"# nothing is known\n"
    path.write_bytes(text)
    (tmp_path / "edits.py").write_text(f"import os\nopen({str(path)!r}, 'w').write('no TOML')\n{after}\n")
    monkeypatch.syspath_prepend(tmp_path)
    case = "spike_encode/values/float32/4-K128"
    arguments = ["--backend", "cpu", "--import", "edits", "--case", case, "--waivers", str(path), "--jobs", "1", *QUICK]
    done = COMMAND.invoke(app, ["conformance", *arguments, "--out", str(tmp_path / "run")])
    assert done.exit_code == code, done.output
    assert path.read_text() == "no TOML"
    assert bundle.load(tmp_path / "run" / bundle.TARBALL)["waivers.toml"] == text
    if not code:
        about = json.loads((tmp_path / "run/report.json").read_text())["waivers"]
        assert about["sha256"] == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize("options", [{"backend": "cpu", "seed": 5, "colour": "red"}, {"backend": "cpu"}, [], 7])
def test_a_run_of_other_options_is_not_continued(options: object, tmp_path: Path) -> None:
    head = {"format": FORMAT, "options": options, "about": {}}
    (tmp_path / NAME).write_text(json.dumps(head) + "\n")
    done = COMMAND.invoke(app, ["conformance", "--resume", str(tmp_path)])
    assert done.exit_code == 2, done.exception
    assert f"cannot resume {tmp_path}: its options are {options!r}, this version has backend, seed, " in done.output


def test_a_broken_backend_fails_with_a_reproducer(tmp_path: Path) -> None:
    arguments = ["--backend", "hostile", "--import", "hostile_backend", "--case", "spike_encode/values/float32"]
    done = COMMAND.invoke(app, ["conformance", *arguments, "--timeout", "20", *QUICK, "--out", str(tmp_path)])
    assert done.exit_code == 1, done.output
    assert "1 crash" in done.output
    assert "--case spike_encode/values/float32/scalar-K33 --seed 5 --no-bench" in done.output
    assert "FAIL" in done.output


def test_an_offered_operator_that_is_never_served_is_a_problem() -> None:
    outdated = Kernel(lambda *args: 0, lambda *args: None, version=0)
    register_backend(
        Backend(
            "old", "test", "cpu", lambda: None, lambda: {"spike_collapse": outdated}, lambda: DeviceProperties("old")
        )
    )
    try:
        from spikingbrain_hal.conformance.run.case import plan
        from spikingbrain_hal.conformance.run.target import open_target
        from spikingbrain_hal.conformance.run.worker import Session

        session = Session(open_target("old"), 0)
        items = plan("quick", ["spike_collapse"])[:3]
        found = problems_of(session.target.opened(), [session.run(i) for i in items])
    finally:
        unregister_backend("old")
    assert any("offers spike_collapse but serves no case" in p and "version 0" in p for p in found)


def test_doctor_finds_the_cpu_backend() -> None:
    done = COMMAND.invoke(app, ["doctor"])
    assert done.exit_code == 0, done.output
    assert "cpu is served by cpu" in done.output
    assert "instruction set" in done.output
    assert "no problems found" in done.output


def test_doctor_shows_the_environment_and_a_selection_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBHAL_BACKEND", "nowhere")
    done = COMMAND.invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert "SBHAL_BACKEND=nowhere" in done.output
    assert "problem" in done.output
    assert "no backend 'nowhere'" in done.output


def test_doctor_shows_that_a_selected_backend_finds_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    register_backend(replace(python_backend("asleep", device_type="cuda"), probe=lambda: "no card is plugged in"))
    try:
        monkeypatch.setenv("SBHAL_BACKEND", "asleep")
        done = COMMAND.invoke(app, ["doctor"])
    finally:
        unregister_backend("asleep")
    assert done.exit_code == 1
    assert "cpu is served by cpu" in done.output
    assert "problem: device type cuda: backend 'asleep' is not available: no card is plugged in" in done.output


def test_doctor_says_what_the_reference_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBHAL_BACKEND", "reference")
    done = COMMAND.invoke(app, ["doctor"])
    assert done.exit_code == 0
    assert "cpu is served by reference" in done.output


def test_two_openmp_runtimes_are_told_apart() -> None:
    maps = (
        "7f00-7f01 r-xp 00000000 08:01 12 /usr/lib/libgomp-a34b3233.so.1.0.0\n"
        "7f01-7f02 r--p 00000000 08:01 12 /usr/lib/libgomp-a34b3233.so.1.0.0\n"
        "7f03-7f04 r-xp 00000000 08:01 13 /opt/lib/libiomp5.so\n"
        "7f05-7f06 r-xp 00000000 08:01 14 /usr/lib/libgompertz.so\n"
    )
    assert openmp_runtimes(maps) == ["/opt/lib/libiomp5.so", "/usr/lib/libgomp-a34b3233.so.1.0.0"]


def test_doctor_fails_on_two_openmp_runtimes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spikingbrain_hal.cli.doctor.openmp_runtimes", lambda maps: ["/a/libgomp.so.1", "/b/libomp.so"])
    done = COMMAND.invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert "2 OpenMP runtimes are loaded" in done.output


def test_ops_lists_operators_with_source_and_backends() -> None:
    done = COMMAND.invoke(app, ["ops"])
    assert done.exit_code == 0
    for expected in ("gated_linear_attention_step_", "straight through", "arXiv:2312.06635"):
        assert expected in done.output


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "spikingbrain_hal", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "doctor" in done.stdout


def test_a_missing_extra_is_named() -> None:
    code = "import sys; sys.modules['typer'] = None; from spikingbrain_hal.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert 'sbhal needs typer: pip install "spikingbrain-hal[cli]"' in done.stderr


def test_importing_the_package_imports_no_extra() -> None:
    code = "import sys, spikingbrain_hal; print([m for m in ('typer', 'rich', 'jinja2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_reader_that_goes_away_ends_a_command_quietly() -> None:
    command = subprocess.Popen([sys.executable, "-m", "spikingbrain_hal", "ops"], stdout=PIPE, stderr=PIPE, text=True)
    assert command.stdout
    assert command.stderr
    command.stdout.close()
    assert (command.stderr.read(), command.wait()) == ("", 1)


def test_output_that_cannot_be_written_is_a_sentence() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "spikingbrain_hal", "ops"], stdout=full, stderr=PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "error: [Errno 28] No space left on device\n")


def test_closed_output_is_no_error() -> None:
    command = f"{sys.executable} -m spikingbrain_hal ops >&-"
    done = subprocess.run(command, shell=True, stderr=PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("seconds", ["-1", "0", "nan", "inf"])
def test_a_time_that_is_none_is_refused(seconds: str, tmp_path: Path) -> None:
    done = COMMAND.invoke(app, ["conformance", "--backend", "cpu", "--timeout", seconds, "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert "--timeout" in done.output

"""Backends that are not what they have to be: each is named with what is wrong, and stops nobody else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from spikingbrain_hal import BackendUnavailable, ops, use_backend
from spikingbrain_hal.backend import Backend, DeviceProperties, Kernel
from spikingbrain_hal.calls import selection
from spikingbrain_hal.cli.app import app
from spikingbrain_hal.cli.refusals import plain
from spikingbrain_hal.conformance.run.suite import problems_of
from spikingbrain_hal.conformance.run.target import Opened
from spikingbrain_hal.declare.registry import OPERATORS

COMMAND = CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"})
PLUGIN = """
from spikingbrain_hal.backend import Backend, DeviceProperties
def function(): pass
backend = Backend("acme", "test", "cpu", lambda: None, dict, lambda: DeviceProperties("acme's"), priority=-1)
"""


@pytest.fixture(autouse=True)
def _fresh(own_selection: None) -> Iterator[None]:
    """Nothing has been found or loaded yet either."""
    kept: list[dict[str, Any]] = [selection._found, selection._loaded]
    before = [dict(k) for k in kept]
    for k in kept:
        k.clear()
    yield
    for k, b in zip(kept, before, strict=True):
        k.clear()
        k.update(b)


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """Installs a distribution with one entry point into a folder that is on the path."""
    (tmp_path / "acme_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)

    def add(package: str, name: str, value: str) -> None:
        folder = tmp_path / f"{package}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[{selection.GROUP}]\n{name} = acme_plugin:{value}\n")

    return add


def register(**changed: Any) -> None:
    """A backend that is sound but for what is changed; it is never better than a built-in one."""
    manifest: dict[str, Any] = {
        "name": "acme",
        "vendor": "test",
        "device_type": "cpu",
        "probe": lambda: None,
        "load": dict,
        "properties": lambda: DeviceProperties("acme's"),
        "priority": -1,
    }
    selection.register_backend(Backend(**manifest | changed))


def collapse() -> torch.Tensor:
    return ops.spike_collapse(torch.ones(1, 2, 3, dtype=torch.int8), coding="ternary")


def fails(*_: Any) -> Any:
    raise ImportError("no acme.so")


BAD_PROBES = [
    (lambda: 1 / 0, "its probe fails: ZeroDivisionError: division by zero"),
    (lambda: True, "probe returned True, expected None or the reason"),
    (lambda: False, "probe returned False, expected None or the reason"),
    (lambda: "", "probe returned '', expected None or the reason"),
]
BAD_LOADS = [
    (fails, "it does not load: ImportError: no acme.so"),
    (lambda: None, "it does not load: TypeError: load returned a NoneType, expected a mapping"),
    (lambda: {"lif_scan": (int, int, 1)}, "it does not load: TypeError: lif_scan is a tuple, expected a Kernel"),
]
BAD_PROPERTIES = [
    (fails, "it does not describe its device: ImportError: no acme.so"),
    (lambda: "a card", "properties returned 'a card', expected DeviceProperties"),
]


@pytest.mark.parametrize(("probe", "reason"), BAD_PROBES)
def test_a_broken_probe_stops_only_its_own_backend(probe: Callable[[], Any], reason: str) -> None:
    register(probe=probe)
    assert collapse().shape[-1] == 3
    assert selection.current("cpu").name == "cpu"
    with pytest.raises(BackendUnavailable, match="backend 'acme' is not available: its probe fails") as raised:
        use_backend("acme")
    assert reason in str(raised.value)
    for command in ("doctor", "ops"):
        done = COMMAND.invoke(app, [command])
        assert done.exit_code == 1
        assert "problem: backend 'acme' is not available: its probe fails" in done.output
        assert reason in done.output
        assert "gated_linear_attention_step_" in done.output


@pytest.mark.parametrize(("load", "reason"), BAD_LOADS)
def test_a_backend_that_does_not_load_says_why(load: Callable[[], Any], reason: str) -> None:
    register(load=load)
    with pytest.raises(BackendUnavailable, match=f"backend 'acme' is not available: {reason}"):
        use_backend("acme")
    for command in ("doctor", "ops"):
        done = COMMAND.invoke(app, [command])
        assert done.exit_code == 1
        assert f"problem: backend 'acme' is not available: {reason}" in done.output
    assert "cpu serves 13 of 13 operators" in done.output


@pytest.mark.parametrize(("properties", "reason"), BAD_PROPERTIES)
def test_doctor_shows_a_backend_that_does_not_describe_its_device(properties: Callable[[], Any], reason: str) -> None:
    register(properties=properties)
    done = COMMAND.invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert done.output.count(reason) == 2, "in the backend's row and as a problem"
    assert "cpu is served by cpu" in done.output


def test_a_backend_that_cannot_run_here_is_no_problem() -> None:
    register(probe=lambda: "no card is plugged in")
    done = COMMAND.invoke(app, ["doctor"])
    assert done.exit_code == 0, done.output
    assert "no: no card is plugged in" in done.output
    assert COMMAND.invoke(app, ["ops"]).exit_code == 0


def test_a_misspelt_operator_is_named() -> None:
    kernel = Kernel(fails, fails, OPERATORS["spike_collapse"].version)
    register(load=lambda: {"spike_colapse": kernel, "zebra": kernel})
    offers = (
        "backend acme offers spike_colapse, which this version does not declare; did you mean spike_collapse?",
        "backend acme offers zebra, which this version does not declare",
    )
    for command in ("doctor", "ops"):
        done = COMMAND.invoke(app, [command])
        assert done.exit_code == 1
        assert all(f"problem: {offer}\n" in done.output for offer in offers)
    assert "acme serves 0 of 13 operators" in done.output
    assert problems_of(Opened("acme", "cpu", (), ("zebra", "spike_colapse")), [])[:2] == [*offers]


def test_entry_points_lead_to_a_backend_of_their_name(publish: Callable[[str, str, str], None]) -> None:
    publish("sbhal_acme", "acme", "backend")
    publish("sbhal_other", "other", "backend")
    publish("sbhal_function", "function", "function")
    found = selection.installed_backends()
    assert found["acme"].backend is not None
    assert found["other"].problem == "its manifest is named 'acme', its entry point 'other'"
    assert found["function"].problem == "TypeError: acme_plugin:function is a function, expected a Backend"
    assert selection.current("cpu").name == "cpu"
    done = COMMAND.invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert "problem: backend 'other' is not available: its manifest is named 'acme'" in done.output


def test_a_name_that_two_packages_offer_is_neither_one_s(publish: Callable[[str, str, str], None]) -> None:
    publish("sbhal_b", "acme", "backend")
    publish("sbhal_a", "acme", "function")
    with pytest.raises(BackendUnavailable, match="'acme' is not available: 2 packages offer it: sbhal_a, sbhal_b"):
        use_backend("acme")
    assert selection.current("cpu").name == "cpu"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("load=None_", "backend 'acme' is not available: it does not load: TypeError: load returned a NoneType"),
        ("properties=str", "backend 'acme' cannot be described: AttributeError: 'str' object has no attribute 'name'"),
        ("probe=absent", "backend 'acme' does not open: NameError: name 'absent' is not defined"),
    ],
)
def test_conformance_says_in_a_sentence_why_a_backend_does_not_open(
    body: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "acme_broken.py").write_text(
        "from dataclasses import replace\nfrom spikingbrain_hal import Backend, DeviceProperties, register_backend\n"
        "None_ = lambda: None\n"
        'sound = Backend("acme", "test", "cpu", None_, dict, lambda: DeviceProperties("acme\'s"), simulated=True)\n'
        f"register_backend(replace(sound, {body}))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ["--backend", "acme", "--import", "acme_broken", "--op", "spike_collapse", "--out", str(tmp_path / "o")]
    done = COMMAND.invoke(app, ["conformance", *arguments])
    assert done.exit_code == 2, done.output
    assert message in " ".join(done.output.split())
    assert "Traceback" not in done.output


def test_lines_of_a_report_s_text_stay_apart_in_the_terminal() -> None:
    assert plain("one\ntwo\r\nthree\x07 [red]") == r"one two three \[red]"

"""Scripts written against Int2Spike, from the description of its behaviour."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from client import agree, run

from spikingbrain_hal import compat

IMPORT = """
from Int2Spike.neuron import (SpikeCountBinaryLIFNode, SpikeCountBitwiseNode, SpikeCountTernaryLIFNode, spike_dequant,
                              spike_fake_quant, spike_matmul, spike_quant, weight_to_bitwise)
"""
TRAINS = {
    "SpikeCountBitwiseNode(is_bidirectional=True)(x)": [[-1, 0, 1], [0, 0, 1], [-1, 0, 0]],
    "SpikeCountBitwiseNode(True, True)(x, T=4)": [[1, 0, 0], [0, 0, 1], [1, 0, 1], [1, 0, 0]],
    "SpikeCountBitwiseNode()(x.abs())": [[1, 0, 1], [0, 0, 1], [1, 0, 0]],
    "SpikeCountTernaryLIFNode()(x)": [[-1, 0, 1]] * 5 + [[0, 0, 1]],
    "SpikeCountBinaryLIFNode()(x.abs(), T=7)": [[1, 0, 1]] * 5 + [[0, 0, 1], [0, 0, 0]],
}


@pytest.mark.parametrize("call", TRAINS)
def test_trains(call: str) -> None:
    x = torch.tensor([-5.0, 0.0, 6.0])
    got = run(f"{IMPORT}spikes = {call}", dict(x=x))["spikes"]
    assert got.dtype == torch.float32
    assert got.tolist() == TRAINS[call]


@pytest.mark.parametrize("node", ["SpikeCountTernaryLIFNode()", "SpikeCountBitwiseNode(is_bidirectional=True)",
                                  "SpikeCountBitwiseNode(True, True)"])  # fmt: skip
@pytest.mark.parametrize("low", [-40, 0])
def test_round_trip(node: str, low: int) -> None:
    """Of tensors without a negative entry too, which Int2Spike refuses."""
    x = torch.randint(low, 40, (3, 17)).float().requires_grad_()
    source = f"""{IMPORT}
node = {node}
a = spike_fake_quant(x, lif_quantizer=node)
b = spike_dequant(spike_quant(x, node), node)
"""
    got = run(source, dict(x=x))
    agree([got["a"]], [x], [x])
    assert torch.equal(got["b"], x)


@pytest.mark.parametrize("node", ["SpikeCountBinaryLIFNode()", "SpikeCountBitwiseNode()"])
def test_zero_point_moves_signed_numbers_into_an_unsigned_coding(node: str) -> None:
    x, zero = torch.tensor([[-3.0, 4.0, 0.0]]), torch.zeros(1, 3)
    source = (
        f"{IMPORT}\nnode = {node}\nout = spike_fake_quant(x, node, zero)\nagain = spike_dequant(node(x, z2), node, z2)"
    )
    got = run(source, dict(x=x, zero=zero, z2=torch.zeros(1, 3)))
    assert torch.equal(got["out"], x + zero)
    assert int(zero.min()) == 3
    assert torch.equal(got["again"], x)


@pytest.mark.parametrize(
    "node",
    ["None", "SpikeCountBitwiseNode(is_bidirectional=True)", "SpikeCountBitwiseNode(True, True)",
     "SpikeCountTernaryLIFNode()"],
)  # fmt: skip
@pytest.mark.parametrize("bits", [4, 5, 6, 8])
@pytest.mark.parametrize("bitwise", [False, True])
def test_matmul(node: str, bits: int, bitwise: bool) -> None:
    half = 1 << bits - 1
    x, w = torch.randint(-half, half, (2, 5, 7)).float(), torch.randint(-half, half, (7, 6)).float()
    x.requires_grad_()
    w.requires_grad_()
    got = run(f"{IMPORT}y = spike_matmul(x, w, None, {node}, weight_bitwise={bitwise})", dict(x=x, w=w))
    agree([got["y"]], [x @ w], [x, w])


def test_matmul_with_zero_points() -> None:
    x, w = torch.randint(0, 16, (4, 7)).float(), torch.randint(0, 16, (7, 3)).float()
    source = f"{IMPORT}y = spike_matmul(x, w, zero, SpikeCountBitwiseNode(), 8, True)"
    zero = torch.full((4, 7), 8.0)
    assert torch.equal(run(source, dict(x=x, w=w, zero=zero))["y"], (x - 8) @ (w - 8))
    x = x - 8
    zero = torch.zeros(4, 7)
    assert torch.equal(run(source, dict(x=x, w=w, zero=zero))["y"], x @ (w - 8))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("SpikeCountBitwiseNode(is_bidirectional=True)(torch.tensor([-9.0]), T=3)", "-9"),
        ("SpikeCountTernaryLIFNode()(torch.tensor([4.0]), T=3)", "4"),
        ("SpikeCountBinaryLIFNode()(torch.tensor([-1.0]))", "-1"),
        ("SpikeCountBinaryLIFNode()(torch.tensor([0.5]))", "whole numbers"),
        ("SpikeCountBinaryLIFNode()(torch.tensor([4e6]))", "whole numbers from"),
        ("SpikeCountBitwiseNode(is_two_complement=True)", "is_bidirectional=True"),
    ],
)
def test_wrong_call(call: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        run(IMPORT + call)


def test_a_node_remembers_nothing() -> None:
    source = IMPORT + """
node = SpikeCountTernaryLIFNode()
node(torch.tensor([3.0]))
spikes = node(torch.tensor([-9.0]))
rate = node.firing_rate(spikes)
v = node.charge(torch.tensor([0.5]), torch.tensor([-2.0]))
spike = node.fire(v)
left = node.reset(v, spike)
figure = node.visualize_spike(spikes[:, None], "raster.png") if draw else None
"""  # fmt: skip
    got = run(source, dict(draw=False))
    assert got["spikes"].sum() == -9
    assert got["rate"] == 1
    assert (got["v"], got["spike"], got["left"]) == (-1.5, -1, -0.5)


def test_raster(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    source = IMPORT + "SpikeCountTernaryLIFNode().visualize_spike(torch.eye(4), path)"
    run(source, dict(path=tmp_path / "raster.png"))
    assert (tmp_path / "raster.png").stat().st_size


def test_the_released_quantized_layer_finds_its_own_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Released W8ASpike imports ``.Int2Spike.neuron`` from its own package; where the copy is there, it is used."""
    package = tmp_path / "W8ASpike_client"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "quant_linear.py").write_text("from .Int2Spike.neuron import spike_fake_quant, SpikeCountBitwiseNode\n")
    monkeypatch.syspath_prepend(tmp_path)
    with compat.installed():
        from W8ASpike_client import quant_linear

        assert quant_linear.spike_fake_quant.__module__ == "spikingbrain_hal.compat.int2spike"
    assert "W8ASpike_client.Int2Spike" not in sys.modules
    assert not hasattr(sys.modules["W8ASpike_client"], "Int2Spike")
    del sys.modules["W8ASpike_client.quant_linear"]
    (package / "Int2Spike").mkdir()
    (package / "Int2Spike/__init__.py").touch()
    (package / "Int2Spike/neuron.py").write_text("spike_fake_quant = SpikeCountBitwiseNode = 'own'\n")
    import importlib

    importlib.invalidate_caches()
    with compat.installed():
        quant_linear = importlib.import_module("W8ASpike_client.quant_linear")
        assert quant_linear.spike_fake_quant == "own"
    for name in [n for n in sys.modules if n.startswith("W8ASpike_client")]:
        del sys.modules[name]

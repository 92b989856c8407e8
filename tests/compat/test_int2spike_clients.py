"""Scripts written against Int2Spike, from the description of its behaviour."""

from __future__ import annotations

import copy
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


NODES = {
    "SpikeCountBinaryLIFNode()": "unsigned",
    "SpikeCountBitwiseNode()": "unsigned",
    "SpikeCountTernaryLIFNode()": "signed",
    "SpikeCountBitwiseNode(is_bidirectional=True)": "signed",
    "SpikeCountBitwiseNode(True, True)": "twos complement",
}
ZERO_POINTS = {  # of x = [-3, 4, 0] and [5, 4, 0]
    "unsigned": ([3, 3, 3], [0, 0, 0]),
    "signed": ([0, 0, 0], [-3, -2, 0]),
    "twos complement": ([16, 0, 0], [-3, -2, 0]),
}


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("case", [0, 1])
@pytest.mark.parametrize("start", [0.0, 8.0])
def test_zero_points(node: str, case: int, start: float) -> None:
    """They take in place what is added to numbers so that a coding carries them, wherever they begin."""
    x = torch.tensor([[(-3.0, 4.0, 0.0), (5.0, 4.0, 0.0)][case]], requires_grad=True)
    source = f"""{IMPORT}
node = {node}
out = spike_fake_quant(x, node, z1)
again = spike_dequant(spike_quant(x, node, z2), node, z2)
"""
    zeros = dict(z1=torch.full((1, 3), start), z2=torch.full((1, 3), start))
    got = run(source, dict(x=x, **zeros))
    moved = torch.tensor([ZERO_POINTS[NODES[node]][case]])
    for zero in zeros.values():
        assert torch.equal(zero, start + moved)
    agree([got["out"]], [x + moved], [x])
    assert torch.equal(got["again"], x - start)


@pytest.mark.parametrize("coding", ["SpikeCountBitwiseNode(True, True)", "SpikeCountBitwiseNode()"])
def test_zero_points_at_the_ends_of_the_range(coding: str) -> None:
    x = torch.tensor([-16000.0, 16767.0])
    source = f"{IMPORT}\nnode = {coding}\nout = spike_dequant(spike_quant(x, node, zero), node, zero)"
    assert torch.equal(run(source, dict(x=x, zero=torch.zeros(2)))["out"], x)


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


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("bitwise", [False, True])
@pytest.mark.parametrize("low", [-8, 0])
def test_matmul_leaves_zero_points_to_the_caller(node: str, bitwise: bool, low: int) -> None:
    x, w = (torch.randint(low, 8, shape).float().requires_grad_() for shape in ((2, 4, 7), (7, 3)))
    zeros = dict(xz=torch.zeros(2, 4, 7), wz=torch.zeros(7, 3))
    got = run(f"{IMPORT}y = spike_matmul(x, w, xz, {node}, wz, weight_bitwise={bitwise})", dict(x=x, w=w, **zeros))
    agree([got["y"]], [(x + zeros["xz"]) @ (w + zeros["wz"])], [x, w])
    assert bool(zeros["wz"].any()) == bitwise
    moves = {"unsigned": low < 0, "signed": low == 0, "twos complement": True}[NODES[node]]
    assert bool(zeros["xz"].any()) == moves
    assert torch.equal(got["y"] - zeros["xz"] @ (w + zeros["wz"]) - x @ zeros["wz"], x @ w)


def test_offset_numbers_keep_their_zero_points() -> None:
    """Numbers that are unsigned already."""
    x, w, zero = torch.randint(0, 16, (4, 7)).float(), torch.randint(0, 16, (7, 3)).float(), torch.full((4, 7), 8.0)
    got = run(
        f"{IMPORT}y = spike_matmul(x, w, zero, SpikeCountBitwiseNode(), torch.tensor(8.0))", dict(x=x, w=w, zero=zero)
    )
    assert zero.eq(8).all()
    assert torch.equal(got["y"], x @ w)


def test_bits_of_weights() -> None:
    """Two's complement, the highest bit first; a zero point takes what the sign weighs."""
    w, zero = torch.tensor([-3.0, 2.0]), torch.zeros(2)
    got = run(f"{IMPORT}a, b = weight_to_bitwise(w), weight_to_bitwise(w, zero)", dict(w=w, zero=zero))
    assert got["a"].tolist() == got["b"].tolist() == [[1, 0], [0, 1], [1, 0]]
    assert zero.tolist() == [8, 0]


@pytest.mark.parametrize(("call", "words"), [
    ("spike_quant(x - 0.5, SpikeCountBitwiseNode(), zero)", "whole numbers"),
    ("spike_quant(x - 9, SpikeCountBitwiseNode(), zero[:1, :2])", r"x_zero is \[1, 2\], expected x's shape"),
    ("spike_quant(x, SpikeCountTernaryLIFNode(), zero[0, 0])", r"x_zero is \[\], expected x's shape, \[2, 3\]"),
    ("spike_quant(torch.tensor([[-2e4, 2e4, 0]] * 2), SpikeCountBitwiseNode(), zero)", "whole numbers from"),
    ("spike_matmul(x - 9, w - 0.5, zero, SpikeCountBitwiseNode(), None, True)", "whole numbers"),
    ("spike_matmul(x - 9, w.T, zero, SpikeCountBitwiseNode())", "mat1 and mat2"),
])  # fmt: skip
def test_zero_points_stay_when_a_call_fails(call: str, words: str) -> None:
    names = dict(x=torch.ones(2, 3), w=torch.ones(3, 5), zero=torch.zeros(2, 3))
    with pytest.raises((ValueError, RuntimeError), match=words):
        run(IMPORT + call, names)
    assert not names["zero"].any()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("SpikeCountBitwiseNode(is_bidirectional=True)(torch.tensor([-9.0]), T=3)", "-9"),
        ("SpikeCountTernaryLIFNode()(torch.tensor([4.0]), T=3)", "4"),
        ("SpikeCountBinaryLIFNode()(torch.tensor([-1.0]))", "-1"),
        ("SpikeCountBinaryLIFNode()(torch.tensor([0.5]))", "whole numbers"),
        ("SpikeCountBinaryLIFNode()(torch.tensor([4e6]))", "whole numbers from"),
        ("SpikeCountBitwiseNode(is_two_complement=True)", "is_bidirectional=True"),
        (
            "SpikeCountBitwiseNode()(torch.ones(3), torch.zeros(3))",
            "T is a Tensor, .* a zero point goes to spike_quant",
        ),
        ("SpikeCountBitwiseNode()(torch.ones(3), 3.0)", "T is a float"),
        ("spike_fake_quant(torch.ones(3), torch.round)", "lif_quantizer is a builtin.*, expected one of its nodes"),
        ("spike_dequant(torch.ones(3), None)", "lif_quantizer is a NoneType"),
        ("SpikeCountBitwiseNode().firing_rate()", "firing_rate: the node has not been called"),
        ("SpikeCountBitwiseNode().visualize_spike()", "visualize_spike: the node has not been called"),
    ],
)
def test_wrong_call(call: str, words: str) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError), match=words):
        run(IMPORT + call)


def test_steps_are_the_second_argument() -> None:
    x = torch.tensor([-5.0, 0.0, 6.0])
    source = f"{IMPORT}\nnode = SpikeCountBitwiseNode(is_bidirectional=True)\nspikes, same = node(x, 6), node(x, T=6)"
    got = run(source, dict(x=x))
    assert got["spikes"].tolist() == [[0, 0, 0]] * 3 + TRAINS["SpikeCountBitwiseNode(is_bidirectional=True)(x)"]
    assert torch.equal(got["spikes"], got["same"])


def test_a_node_remembers_what_it_sent_and_nothing_that_counts() -> None:
    source = IMPORT + """
node = SpikeCountTernaryLIFNode()
node(torch.tensor([3.0]))
spikes = node(torch.tensor([-9.0, 3.0]), 12)
rate = node.firing_rate()
v = node.charge(torch.tensor([0.5]), torch.tensor([-2.0]))
spike = node.fire(v)
left = node.reset(v, spike)
"""  # fmt: skip
    got = run(source)
    assert got["spikes"].sum(0).tolist() == [-9, 3]
    assert got["rate"].tolist() == [0.75, 0.25]
    assert (got["v"], got["spike"], got["left"]) == (-1.5, -1, -0.5)


def test_nodes_are_modules() -> None:
    node = run(f"{IMPORT}node = SpikeCountBitwiseNode(is_bidirectional=True)")["node"]
    model = torch.nn.Sequential(torch.nn.ReLU(), node).to(torch.bfloat16)
    assert model(torch.tensor([3.0, -2.0])).tolist() == [[1, 0], [1, 0]]
    assert list(model.state_dict()) == []
    assert [type(m).__name__ for m in model.children()] == ["ReLU", "SpikeCountBitwiseNode"]
    assert copy.deepcopy(node).firing_rate().tolist() == [1, 0]


def test_raster(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    source = IMPORT + "node = SpikeCountTernaryLIFNode()\nnode(torch.eye(4))\nnode.visualize_spike(filename=path)"
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

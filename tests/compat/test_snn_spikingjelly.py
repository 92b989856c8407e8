"""SpikingJelly's nodes on lif_scan against SpikingJelly's own code."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
surrogate = pytest.importorskip("spikingjelly.activation_based.surrogate")

from spikingbrain_hal import use_backend  # noqa: E402
from spikingbrain_hal.compat import spikingjelly as compat  # noqa: E402

STEPS = 6
OLD = not hasattr(neuron.LIFNode, "materialize_states")
SURROGATES: dict[str, Callable[[float], Any]] = {
    "Sigmoid": lambda a: surrogate.Sigmoid(alpha=a),
    "ATan": lambda a: surrogate.ATan(alpha=a),
    "PiecewiseQuadratic": lambda a: surrogate.PiecewiseQuadratic(alpha=a),
    "PiecewiseExp": lambda a: surrogate.PiecewiseExp(alpha=a),
    "SoftSign": lambda a: surrogate.SoftSign(alpha=a),
    "SuperSpike": lambda a: surrogate.SuperSpike(alpha=a),
    "Erf": lambda a: surrogate.Erf(alpha=a),
    "Rect": lambda a: surrogate.Rect(alpha=a),
    "PiecewiseLeakyReLU": lambda a: surrogate.PiecewiseLeakyReLU(w=a, c=0.02),
    "LeakyKReLU": lambda a: surrogate.LeakyKReLU(leak=0.1, k=a),
    "DeterministicPass": lambda a: surrogate.DeterministicPass(),
}
MAPPED = [name for name in SURROGATES if hasattr(surrogate, name) and not (OLD and name == "PiecewiseLeakyReLU")]
CHARGES: dict[str, Callable[..., nn.Module]] = {
    "if": lambda tau, **o: neuron.IFNode(**o),
    "lif": lambda tau, **o: neuron.LIFNode(tau, True, **o),
    "lif, whole input": lambda tau, **o: neuron.LIFNode(tau, False, **o),
    "parametric": lambda tau, **o: neuron.ParametricLIFNode(tau, True, **o),
    "parametric, whole input": lambda tau, **o: neuron.ParametricLIFNode(tau, False, **o),
}


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    torch.set_num_threads(1)
    yield
    compat.restore()


class Run:
    """Two calls of a node, the second from the state that the first left, and the gradients of all that came out."""

    def __init__(self, node: nn.Module, x: Tensor, v0: Tensor, accelerated: bool) -> None:
        self.node = copy.deepcopy(node).to(x.dtype)
        self.x, self.v0 = x.clone().requires_grad_(), v0.clone().requires_grad_()
        self.node.v = 1.0 * self.v0
        middle = len(x) // 2
        traces = []

        def go(part: Tensor) -> Tensor:
            spikes: Tensor = self.node(part)
            traces.append(self.node.v_seq if self.node.store_v_seq else self.node.v[None])
            return spikes

        if accelerated:
            # The kernels must run, not the reference, which float64 is for.
            kernels = use_backend("cpu") if x.dtype == torch.float32 else nullcontext()
            with compat.accelerated(), kernels:
                self.spikes = torch.cat((go(self.x[:middle]), go(self.x[middle:])))
            assert [found for found in operators(self.spikes) if "OperatorBackward" in found]
        else:
            self.spikes = torch.cat((go(self.x[:middle]), go(self.x[middle:])))
            assert not [found for found in operators(self.spikes) if "OperatorBackward" in found]
        self.v = torch.cat(traces)

    def gradients(self, *weights: Tensor) -> list[Tensor]:
        loss = sum((out * w).sum() for out, w in zip((self.spikes, self.v), weights, strict=True))
        found = torch.autograd.grad(loss, [self.x, self.v0, *self.node.parameters()])
        return list(found)


def operators(out: Tensor) -> set[str]:
    """The names in a tensor's autograd graph."""
    found, left = set(), [out.grad_fn]
    while left:
        step = left.pop()
        if step is not None and step not in found:
            found.add(step)
            left += [parent for parent, _ in step.next_functions]
    return {type(step).__name__ for step in found}


def potentials(node: nn.Module, x: Tensor, v0: Tensor) -> Tensor:
    """What a node decides its spikes on, [T, ...] float64, by its published equations."""
    v, rows, rest = v0.double(), [], node.v_reset or 0.0
    if not isinstance(node, neuron.IFNode):
        rate = node.w.detach().double().sigmoid() if hasattr(node, "w") else 1 / node.tau
    for row in x.double():
        if isinstance(node, neuron.IFNode):
            h = v + row
        else:
            h = v - rate * (v - rest) + (rate * row if node.decay_input else row)
        fired = h >= node.v_threshold
        v = h - fired * node.v_threshold if node.v_reset is None else torch.where(fired, node.v_reset, h)
        rows.append(h)
    return torch.stack(rows)


def uncertain(node: nn.Module, x: Tensor, v0: Tensor) -> Tensor:
    """Neurons that come within rounding of the threshold, or of a jump of the surrogate's derivative."""
    distance = potentials(node, x, v0) - node.v_threshold
    margin = 1e-5 if x.dtype == torch.float32 else 1e-12
    slopes = []
    for side in (-margin, margin):
        u = (distance + side).requires_grad_()
        slopes.append(torch.autograd.grad(node.surrogate_function(u).sum(), u)[0])
    jumps = (slopes[0] - slopes[1]).abs() > 1e-2
    return ((distance.abs() < margin) | jumps).any(0)


def compare(node: nn.Module, x: Tensor, v0: Tensor) -> Tensor:
    """Asserts equal spikes, states and gradients but for uncertain neurons; returns the spikes."""
    own, ours = Run(node, x, v0, False), Run(node, x, v0, True)
    left_out = uncertain(node, x, v0)
    assert left_out.sum() <= 1 + 0.05 * left_out.numel()
    sure = (~left_out).to(x.dtype)
    assert ours.spikes.dtype == own.spikes.dtype
    assert ours.node.v.dtype == own.node.v.dtype
    assert ours.node.v.shape == own.node.v.shape
    assert torch.equal(ours.spikes * sure, own.spikes * sure)
    tolerance = {"rtol": 2e-4, "atol": 2e-5} if x.dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(ours.v * sure, own.v * sure, **tolerance)
    weights = [torch.randn_like(own.spikes) * sure, torch.randn_like(own.v) * sure]
    for found, expected in zip(ours.gradients(*weights), own.gradients(*weights), strict=True):
        torch.testing.assert_close(found, expected, **tolerance)
    return own.spikes


@pytest.mark.parametrize("charge", CHARGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_combination_of_options_equals_spikingjelly(charge: str, dtype: torch.dtype) -> None:
    fired = []
    for v_reset, detach, store, name in itertools.product((None, 0.0, -0.3), (False, True), (False, True), MAPPED):
        options = {"v_reset": v_reset, "detach_reset": detach, "store_v_seq": store, "step_mode": "m"}
        node = CHARGES[charge](2.5, v_threshold=0.9, surrogate_function=SURROGATES[name](1.5), **options)
        assert compat.explain(node, dtype) == {"": "lif_scan"}
        fired.append(compare(node, 2 * torch.randn(STEPS, 23, dtype=dtype), torch.randn(23, dtype=dtype)).mean())
    assert 0.05 < torch.stack(fired).mean() < 0.95


@settings(max_examples=30, deadline=None)
@given(
    charge=st.sampled_from(sorted(CHARGES)),
    tau=st.floats(1.05, 50.0),
    v_threshold=st.floats(0.05, 3.0),
    v_reset=st.none() | st.floats(-1.0, 1.0),
    detach_reset=st.booleans(),
    store_v_seq=st.booleans(),
    name=st.sampled_from(sorted(MAPPED)),
    alpha=st.floats(0.3, 6.0),
    shape=st.sampled_from([(), (1,), (70,), (2, 33), (2, 3, 4, 5)]),
    steps=st.integers(2, 20),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 1 << 30),
)
def test_any_numbers_equal_spikingjelly(
    charge: str,
    tau: float,
    name: str,
    alpha: float,
    shape: tuple[int, ...],
    steps: int,
    dtype: Any,
    seed: int,
    **o: Any,
) -> None:
    torch.manual_seed(seed)
    node = CHARGES[charge](tau, step_mode="m", surrogate_function=SURROGATES[name](alpha), **o)
    compare(node, 2 * torch.randn(steps, *shape, dtype=dtype), torch.randn(shape, dtype=dtype))


def test_states_begin_carry_on_and_reset_as_before() -> None:
    x = torch.randn(6, 5)
    node = neuron.LIFNode(v_reset=-0.5, step_mode="m", store_v_seq=True)
    own = copy.deepcopy(node)
    expected = [own(x), own.v, own.v_seq]
    with compat.accelerated():
        assert node.v == -0.5
        found = [node(x), node.v, node.v_seq]
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)
        node.reset()
        assert node.v == -0.5
        assert node.v_seq is None
        assert torch.equal(node(x), expected[0])


def test_a_training_step_of_a_network_is_the_same() -> None:
    def network() -> nn.Sequential:
        torch.manual_seed(1)
        nodes = neuron.LIFNode(step_mode="m"), neuron.ParametricLIFNode(step_mode="m", v_reset=None)
        return nn.Sequential(nn.Linear(12, 30), nodes[0], nn.Linear(30, 8), nodes[1]).double()

    x = 3 * torch.randn(7, 4, 12, dtype=torch.float64)
    found = []
    for accelerated in (False, True):
        model = network()
        if accelerated:
            compat.accelerate()
        out = model(x)
        out.mean(0).square().sum().backward()
        found.append([out, *(p.grad for p in model.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_nothing_in_the_model_changes() -> None:
    node = neuron.LIFNode(step_mode="m")
    own = neuron.LIFNode.multi_step_forward
    with compat.accelerated():
        node(torch.randn(3, 4))
        assert type(node) is neuron.LIFNode
        assert type(pickle.loads(pickle.dumps(neuron.IFNode()))) is neuron.IFNode
        with compat.accelerated():
            pass
        assert neuron.LIFNode.multi_step_forward is not own
    assert neuron.LIFNode.multi_step_forward is own


def test_permanent_acceleration_outlives_a_block_and_ends_when_told() -> None:
    own = {t: t.multi_step_forward for t in (neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode)}
    compat.accelerate()
    compat.accelerate()
    with compat.accelerated():
        pass
    assert all(t.multi_step_forward is not f for t, f in own.items())
    compat.restore()
    assert all(t.multi_step_forward is f for t, f in own.items())


def changed(**attributes: Any) -> nn.Module:
    node = neuron.LIFNode(step_mode="m")
    for name, value in attributes.items():
        setattr(node, name, value)
    return node


class Derived(neuron.LIFNode):
    """A user's class of its own."""


class OwnSurrogate(surrogate.Sigmoid):
    """A user's derivative."""


LEFT: dict[str, tuple[Callable[[], nn.Module], torch.dtype, str]] = {
    "single step": (lambda: neuron.LIFNode(), torch.float32, "step_mode is 's'"),
    "derived class": (lambda: Derived(step_mode="m"), torch.float32, "Derived is none of IFNode"),
    "other class": (lambda: neuron.KLIFNode(step_mode="m"), torch.float32, "KLIFNode is none of"),
    "custom surrogate": (lambda: changed(surrogate_function=OwnSurrogate()), torch.float32, "OwnSurrogate"),
    "other module": (lambda: changed(surrogate_function=nn.Sigmoid()), torch.float32, "nn.modules.activation.Sigmoid"),
    "unknown surrogate": (lambda: changed(surrogate_function=surrogate.S2NN()), torch.float32, "S2NN"),
    "not spiking": (lambda: changed(surrogate_function=surrogate.ATan(spiking=False)), torch.float32, "spiking mode"),
    "zero slope": (lambda: changed(surrogate_function=surrogate.LeakyKReLU(k=0.0)), torch.float32, "k=0.0"),
    "learnt threshold": (lambda: changed(v_threshold=torch.tensor(0.5)), torch.float64, "v_threshold is a Tensor"),
    "bfloat16": (lambda: changed(), torch.bfloat16, "torch.bfloat16"),
    "float16": (lambda: changed(), torch.float16, "torch.float16"),
}
if OLD:
    steep = surrogate.PiecewiseLeakyReLU()
    LEFT["steep"] = (lambda: changed(surrogate_function=steep), torch.float32, "twice its formula's")


@pytest.mark.parametrize("name", LEFT)
def test_what_does_not_map_runs_as_before_and_is_explained(name: str) -> None:
    make, dtype, reason = LEFT[name]
    node = make()
    assert compat.explain(node, dtype)[""].startswith("spikingjelly: ")
    assert reason in compat.explain(node, dtype)[""]
    x = torch.randn(5, 6, 7).to(dtype)
    own = copy.deepcopy(node)(x)
    with compat.accelerated():
        assert torch.equal(node(x), own)


def test_explain_names_every_node_of_a_model() -> None:
    model = nn.ModuleDict({"a": neuron.IFNode(step_mode="m"), "b": nn.Sequential(nn.ReLU(), neuron.IFNode())})
    found = compat.explain(model)
    assert found.keys() == {"a", "b.1"}
    assert found["a"] == "lif_scan"


@pytest.mark.skipif(OLD, reason="this version has no functional form")
def test_functional_form_runs_on_the_scan_too() -> None:
    node = neuron.ParametricLIFNode(step_mode="m", v_reset=None)
    x, v = torch.randn(6, 5), torch.randn(5)
    (expected,), (v_expected,) = node.functional_forward((x,), (v,))
    with compat.accelerated():
        (found,), (v_found,) = node.functional_forward((x,), (v,))
    assert any("OperatorBackward" in name for name in operators(found))
    assert torch.equal(found, expected)
    torch.testing.assert_close(v_found, v_expected)


def test_evaluation_gives_the_same_spikes() -> None:
    x = 2 * torch.randn(6, 50)
    node = neuron.LIFNode(step_mode="m").eval()
    own = copy.deepcopy(node)
    with compat.accelerated(), torch.no_grad():
        found = node(x)
    assert torch.equal(found, own(x))
    for each in (own, node):
        each.reset()
    inputs = x.requires_grad_()
    with compat.accelerated():
        assert node(inputs).requires_grad == own(inputs).requires_grad


def test_a_potential_at_the_threshold_fires() -> None:
    node = neuron.IFNode(step_mode="m", surrogate_function=surrogate.ATan())
    with compat.accelerated():
        assert node(torch.ones(3, 2)).sum() == 6

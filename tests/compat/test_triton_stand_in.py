"""Files that hold Triton kernels can be imported; launching one fails with a sentence."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from client import run

from spikingbrain_hal.errors import UnsupportedOp

KERNELS = """
    import triton
    import triton.language as tl
    import triton.language.extra.libdevice as tldevice
    from triton.language.extra.cuda import libdevice
    from triton.runtime.jit import JITFunction
    from triton.runtime.autotuner import Config
    from fla.ops.utils.op import exp, log
    from fla.utils import autocast_custom_bwd, autocast_custom_fwd, contiguous, get_multiprocessor_count, input_guard

    DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}
    LOG2 = tl.constexpr(1.4426950408889634)
    BITS: tl.constexpr = 8

    @triton.heuristics({"USE_OFFSETS": lambda args: args["offsets"] is not None})
    @triton.autotune(
        configs=[triton.Config({"BT": b}, num_warps=w, num_stages=s) for b in (16, 32) for w in (2, 4) for s in (1, 2)],
        key=["D"], restore_value=["y"], **({"cache_results": True} if hasattr(tl, "gather") else {}))
    @triton.jit(do_not_specialize=["T"])
    def forward_kernel(x, y, T, D: tl.constexpr, BT: tl.constexpr, dtype: tl.dtype = tl.float32):
        block = tl.make_block_ptr(x, (T, D), (D, 1), (tl.program_id(0) * BT, 0), (BT, D), (1, 0))
        tl.store(y, exp(tl.load(block)))

    @triton.jit
    def plain_kernel(x, n: tl.constexpr):
        return inner(x) + n

    @triton.jit
    def inner(x: tl.tensor | None, y: None | tl.tensor = None):
        return tldevice.log1p(x)

    @tl.core.extern
    def external(x):
        pass

    class Norm(torch.autograd.Function):
        @staticmethod
        @input_guard
        @autocast_custom_fwd
        def forward(ctx, x):
            grid = (triton.cdiv(x.shape[0], 16),)
            forward_kernel[grid](x, x, T=x.shape[0], D=x.shape[1])
            return x

        @staticmethod
        @contiguous
        @autocast_custom_bwd
        def backward(ctx, dy):
            return dy
"""


def test_a_file_with_kernels_can_be_imported() -> None:
    got = run(KERNELS)
    kernel = got["forward_kernel"]
    assert kernel.__name__ == "forward_kernel"
    assert isinstance(kernel, got["JITFunction"])
    assert len(kernel.configs) == 8
    assert kernel.configs[0].all_kwargs() == {"BT": 16, "num_warps": 2, "num_stages": 1, "num_ctas": 1}
    assert kernel.arg_names[:3] == ["x", "y", "T"]
    assert kernel.values["USE_OFFSETS"]({"offsets": 1}) is True
    assert got["triton"].cdiv(17, 16) == 2
    assert [got["triton"].next_power_of_2(n) for n in (0, 1, 2, 3, 64, 65)] == [1, 1, 2, 4, 64, 128]
    assert got["LOG2"].value == pytest.approx(1.442695)
    assert got["tl"].float32 is got["DTYPES"][got["torch"].float32]
    assert repr(got["tl"].float32) == "triton.language.float32"
    assert got["get_multiprocessor_count"]() >= 1


@pytest.mark.parametrize(
    ("launch", "words"),
    [
        ("forward_kernel[(4,)](1, 2, 3)", "the Triton kernel forward_kernel (client.py) was launched"),
        ("plain_kernel[lambda meta: (1,)](1, n=2, num_warps=4)", "the Triton kernel plain_kernel"),
        ("plain_kernel(1)", "the Triton kernel plain_kernel"),
        ("plain_kernel.warmup(1, grid=(1,))", "the Triton kernel plain_kernel"),
        ("external(1)", "the Triton kernel external"),
        ("Norm.apply(torch.ones(3, 4))", "the Triton kernel forward_kernel"),
        ("exp(1)", "triton.language.exp was called outside a kernel"),
        ("tl.zeros([2], tl.float32)", "triton.language.zeros was called outside a kernel"),
        ("triton.testing.do_bench(lambda: 1)", "triton.testing.do_bench was called"),
    ],
)
def test_launching_fails_with_a_sentence(launch: str, words: str) -> None:
    with pytest.raises(UnsupportedOp) as caught:
        run(KERNELS + "\n    import triton.testing\n    " + launch)
    assert words in str(caught.value)
    assert "Triton is not installed: this is the stand-in of spikingbrain_hal.compat" in str(caught.value)


def test_there_is_no_driver() -> None:
    with pytest.raises(RuntimeError, match="0 active drivers"):
        run("import triton\ntriton.runtime.driver.active.get_current_target()")


@pytest.mark.parametrize(
    "line", ["import triton.tools.tensor_descriptor", "from triton import nothing", "import fla.ops.x"]
)
def test_unknown_names_are_import_errors(line: str) -> None:
    with pytest.raises(ImportError):
        run(line)


HYGIENE = """
import sys
from spikingbrain_hal import compat
with compat.installed():
    import triton, triton.language as tl
    import fla.ops.gla, flash_attn
    import torch
    from torch.utils._triton import has_triton, has_triton_package
    import torch._dynamo
    assert not has_triton() and not has_triton_package()
    from torch._inductor.runtime import triton_compat
    assert not triton_compat.HAS_TRITON
    f = torch.compile(lambda x: (x * 2).relu().sum(), backend="aot_eager")
    assert f(torch.ones(3)) == 6
    import triton
    assert isinstance(triton.jit(lambda x: x), triton.JITFunction)
left = [n for n in sys.modules if n.split(".")[0] in ("fla", "flash_attn", "triton", "Int2Spike", "moba")]
assert left == [], left
assert not any(type(f).__module__.startswith("spikingbrain_hal") for f in sys.meta_path)
assert f(torch.ones(4)) == 8
try:
    import triton
except ImportError:
    print("clean")
"""


def test_torch_is_not_persuaded() -> None:
    """Though a client imports Triton first; in a process of its own, in which torch has not looked for it yet."""
    done = subprocess.run([sys.executable, "-c", HYGIENE], capture_output=True, text=True, timeout=300)
    assert done.stdout == "clean\n", done.stderr


def test_inductor_of_this_process_is_not_persuaded() -> None:
    source = """
        import triton
        from torch.utils._triton import has_triton
        compiled = torch.compile(lambda x: torch.softmax(x, -1) + 1)
        x = torch.rand(4, 5)
        y, wanted, found = compiled(x), torch.softmax(x, -1) + 1, has_triton()
    """
    got: dict[str, Any] = run(source)
    assert got["found"] is False
    got["torch"].testing.assert_close(got["y"], got["wanted"])

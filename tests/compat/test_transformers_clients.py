"""transformers beside the stand-ins: neither misled by them nor in their way."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from typing import Any

import pytest
import torch

from spikingbrain_hal import compat

transformers = pytest.importorskip("transformers")

FRESH = """
from spikingbrain_hal import compat
with compat.installed(fla="0.1"):
    import triton, flash_attn, fla.ops.gla
    import transformers
    from transformers import modeling_flash_attention_utils as attention
    from transformers.utils.import_utils import is_triton_available
    assert not attention.is_flash_attn_available() and not is_triton_available()
    c = transformers.LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                 num_attention_heads=2)
    transformers.LlamaForCausalLM(c)
print("quiet")
"""


def test_transformers_is_not_persuaded() -> None:
    """In a process of its own: transformers looks once, when it is imported."""
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, timeout=300)
    assert done.stdout == "quiet\n", done.stderr


def tiny(implementation: str) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation=implementation,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


def test_announced_flash_attention_serves_transformers() -> None:
    checks = transformers.utils.import_utils
    ids, mask = torch.randint(3, 50, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    with torch.no_grad(), compat.installed(announce=True):
        assert importlib.metadata.version("flash_attn") == importlib.metadata.version("flash-attn") == "2.8.3"
        assert importlib.metadata.packages_distributions()["flash_attn"] == ["flash-attn"]
        assert checks.is_flash_attn_2_available()
        model, wanted = tiny("flash_attention_2"), tiny("eager")
        assert model.config._attn_implementation == "flash_attention_2"
        for m in (None, mask):
            rows = ids[:1] if m is None else ids  # transformers 4.55.0 runs rows without a mask into each other
            a, b = (x(rows, attention_mask=m).logits for x in (model, wanted))
            kept = torch.ones_like(rows).bool() if m is None else m.bool()
            torch.testing.assert_close(a[kept], b[kept], rtol=1e-4, atol=1e-5)
        options = dict(attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
        assert torch.equal(model.generate(ids, **options), wanted.generate(ids, **options))
    assert not checks.is_flash_attn_2_available()
    assert not transformers.utils.is_flash_attn_2_available()
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("flash_attn")
    with pytest.raises((ImportError, ValueError)):
        tiny("flash_attention_2")

"""transformers beside the stand-ins: neither misled by them nor in their way."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from client import run

from spikingbrain_hal import compat

transformers = pytest.importorskip("transformers")

FRESH = """
from spikingbrain_hal import compat
with compat.installed(fla="0.1"):
    import triton, flash_attn, fla.ops.gla
    import transformers
    from transformers.utils import is_flash_attn_2_available
    from transformers.utils.import_utils import is_triton_available
    assert not is_flash_attn_2_available() and not is_triton_available()
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
            a, b = (x(ids, attention_mask=m).logits for x in (model, wanted))
            kept = torch.ones_like(mask).bool() if m is None else m.bool()
            torch.testing.assert_close(a[kept], b[kept], rtol=1e-4, atol=1e-5)
        options = dict(attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
        assert torch.equal(model.generate(ids, **options), wanted.generate(ids, **options))
    assert not checks.is_flash_attn_2_available()
    assert not transformers.utils.is_flash_attn_2_available()
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("flash_attn")
    with pytest.raises((ImportError, ValueError)):
        tiny("flash_attention_2")


MODEL = '''
"""A hybrid of linear and windowed attention in the manner of SpikingBrain 1.0."""

import torch
import triton
import triton.language as tl
from fla.models.utils import Cache, FLAGenerationMixin
from fla.modules import FusedCrossEntropyLoss, GatedMLP, RMSNorm, ShortConvolution
from fla.modules.activations import swish
from fla.ops.gla import chunk_gla, fused_recurrent_gla
from fla.utils import autocast_custom_fwd, contiguous
from flash_attn import flash_attn_func, flash_attn_varlen_func
from flash_attn.bert_padding import index_first_axis, pad_input, unpad_input
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


@triton.jit
def kernel(x, N: tl.constexpr):
    tl.store(x, tl.load(x) * N)


class TinyConfig(PretrainedConfig):
    model_type = "tiny_hybrid"

    def __init__(self, hidden_size=16, heads=2, vocab_size=40, layers=3, window=64, **kwargs):
        self.hidden_size, self.heads, self.vocab_size = hidden_size, heads, vocab_size
        self.layers, self.window, self.num_hidden_layers = layers, window, layers
        super().__init__(**kwargs)


class Linear(nn.Module):
    def __init__(self, c, layer):
        super().__init__()
        self.c, self.layer = c, layer
        self.qkvg = nn.Linear(c.hidden_size, 4 * c.hidden_size)
        self.o = nn.Linear(c.hidden_size, c.hidden_size)

    def forward(self, x, cache):
        b, t, d = x.shape
        q, k, v, g = self.qkvg(x).view(b, t, 4, self.c.heads, -1).permute(2, 0, 3, 1, 4)
        g = torch.nn.functional.logsigmoid(g) / 16
        state = None
        if cache is not None and len(cache) > self.layer:
            state = cache[self.layer]["recurrent_state"]
        f = fused_recurrent_gla if t == 1 else chunk_gla
        o, state = f(q.relu(), k.relu(), v, g, initial_state=state, output_final_state=cache is not None)
        if cache is not None:
            cache.update(recurrent_state=state, layer_idx=self.layer, offset=t)
        return self.o(o.transpose(1, 2).reshape(b, t, d))


class Windowed(Linear):
    def forward(self, x, cache):
        b, t, d = x.shape
        q, k, v, _ = self.qkvg(x).view(b, t, 4, self.c.heads, -1).unbind(2)
        if cache is not None:
            seen = cache.get_seq_length(self.layer)
            held = cache.update(attn_state=(k.flatten(2).view(b, 1, t, -1), v.flatten(2).view(b, 1, t, -1)),
                                layer_idx=self.layer, offset=t, cache_kwargs={"window_size": self.c.window})
            if seen:
                k, v = (y.view(b, -1, self.c.heads, d // self.c.heads) for y in held["attn_state"])
        return self.o(flash_attn_func(q, k, v, causal=True, window_size=(self.c.window, 0)).reshape(b, t, d))


class TinyForCausalLM(PreTrainedModel, FLAGenerationMixin):
    config_class = TinyConfig
    _is_stateful = True

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        kinds = [(Linear, Windowed)[n % 2] for n in range(config.layers)]
        self.mixers = nn.ModuleList(kind(config, n) for n, kind in enumerate(kinds))
        self.norms = nn.ModuleList(RMSNorm(config.hidden_size) for _ in range(2 * config.layers))
        self.mlps = nn.ModuleList(GatedMLP(config.hidden_size, 2) for _ in kinds)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, input_ids, past_key_values=None, use_cache=False, labels=None, **kwargs):
        if use_cache and not isinstance(past_key_values, Cache):
            past_key_values = Cache.from_legacy_cache(past_key_values)
        x = self.embed(input_ids)
        for n, mixer in enumerate(self.mixers):
            y = mixer(self.norms[2 * n](x), past_key_values if use_cache else None)
            y, x = self.norms[2 * n + 1](y, x, True)
            x = x + self.mlps[n](y)
        logits = self.head(x)
        loss = None
        if labels is not None:
            loss = FusedCrossEntropyLoss()(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)
'''


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a model whose code comes with it."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "modeling_tiny.py").write_text(MODEL)
    names = {"AutoConfig": "modeling_tiny.TinyConfig", "AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM"}
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny_hybrid", "auto_map": names}))
    yield folder
    for name in [n for n in sys.modules if n.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]


def test_remote_code_runs_unmodified(checkpoint: Path) -> None:
    """Loads, trains, and generates with its cache what it generates without one."""
    load = dict(trust_remote_code=True, local_files_only=True)
    with compat.installed(fla="0.1", strict=True):
        config = transformers.AutoConfig.from_pretrained(checkpoint, **load)
        model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=True)
        model.save_pretrained(checkpoint, safe_serialization=True)
        again = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, **load).eval()
    ids = torch.randint(3, 40, (2, 12))
    loss = model(ids, labels=ids).loss
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits)
        wanted = ids
        for _ in range(8):
            wanted = torch.cat((wanted, again(wanted).logits[:, -1:].argmax(-1)), 1)
        options: dict[str, Any] = dict(max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)
        assert torch.equal(again.generate(ids, use_cache=False, **options), wanted)
        assert torch.equal(again.generate(ids, use_cache=True, **options), wanted)


CACHE = """
from fla.models.modeling_layers import GradientCheckpointingLayer
from fla.models.utils import Cache, FLAGenerationMixin
import transformers
cache = Cache()
assert isinstance(cache, transformers.cache_utils.Cache) and len(cache) == 0 and cache.get_seq_length() == 0
k = torch.arange(24.0).view(2, 6, 2)
for layer in range(2):
    cache.update(recurrent_state=k[:, 0], attn_state=(k[:, :4], -k[:, :4]), layer_idx=layer, offset=4,
                 cache_kwargs=dict(window_size=3))
assert [cache.get_seq_length(n) for n in range(3)] == [4, 4, 0]
state = cache.update(attn_state=(k[:, 4:], -k[:, 4:]), conv_state=(k,), layer_idx=1, offset=2,
                     cache_kwargs=dict(window_size=3))
"""


def test_cache_counts_for_each_layer() -> None:
    got = run(CACHE, fla="0.4")
    cache, k = got["cache"], got["k"]
    assert [cache.get_seq_length(n) for n in range(2)] == [4, 6]
    assert torch.equal(got["state"]["attn_state"][1], -k[:, 3:])
    assert torch.equal(cache[0]["attn_state"][0], k[:, 1:4])
    cache.reorder_cache(torch.tensor([1, 1]))
    assert torch.equal(cache[1]["recurrent_state"], k[[1, 1], 0])
    assert cache[1]["conv_state"][0].shape == k.shape
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0]))
    assert cache[0]["recurrent_state"].shape == (1, 2)
    assert cache.get_mask_sizes(3, 1) == (9, 0)
    assert cache.get_mask_sizes(torch.arange(3), 0) == (7, 0)
    assert (cache.get_max_length(), cache.get_max_cache_shape()) == (None, -1)
    with pytest.raises(KeyError, match="layer 2 asked for, 2 layers held"):
        cache[2]
    with pytest.raises(ValueError, match="attn_state is a Tensor"):
        cache.update(attn_state=k)
    with pytest.raises(NotImplementedError, match="cannot be rolled back"):
        cache.crop(1)
    copy = type(cache).from_legacy_cache(cache.to_legacy_cache(), seen_tokens=6)
    assert [len(copy), copy.get_seq_length(1)] == [2, 6]
    assert len(list(copy)) == 2
    cache.reset()
    assert (len(cache), cache.get_seq_length()) == (0, 0)

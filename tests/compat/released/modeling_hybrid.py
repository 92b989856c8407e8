"""A small hybrid of linear and windowed attention, put together as SpikingBrain 1.0's released files are.

It imports what they import, in their manner: flash-attn behind transformers' question for it, einops, fla's modules, a
kernel of its own; its rotary frequencies are a buffer that is not saved.
"""

import torch
import triton
import triton.language as tl
from einops import rearrange
from fla.models.utils import Cache, FLAGenerationMixin
from fla.modules import FusedCrossEntropyLoss, GatedMLP, RMSNorm
from fla.modules.activations import swish  # noqa: F401
from fla.ops.gla import chunk_gla, fused_recurrent_gla
from fla.utils import autocast_custom_fwd, contiguous  # noqa: F401
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import is_flash_attn_2_available

if is_flash_attn_2_available():
    from flash_attn import flash_attn_func, flash_attn_varlen_func
    from flash_attn.bert_padding import index_first_axis, pad_input, unpad_input


@triton.jit
def kernel(x, N: tl.constexpr):
    tl.store(x, tl.load(x) * N)


class HybridConfig(PretrainedConfig):
    model_type = "small_hybrid"

    def __init__(self, hidden_size=16, heads=2, vocab_size=40, layers=3, window=64, **kwargs):
        self.hidden_size, self.heads, self.vocab_size = hidden_size, heads, vocab_size
        self.layers, self.window, self.num_hidden_layers = layers, window, layers
        super().__init__(**kwargs)


class Rotary(nn.Module):
    def __init__(self, size, base=10000.0):
        super().__init__()
        inv_freq = 1.0 / base ** (torch.arange(0, size, 2, dtype=torch.int64).float() / size)
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(self, x, start):
        angles = torch.outer(torch.arange(x.shape[1], device=x.device) + start, self.inv_freq)[:, None]
        a, b = x.chunk(2, -1)
        return torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), -1)


class Linear(nn.Module):
    def __init__(self, c, layer):
        super().__init__()
        self.c, self.layer = c, layer
        self.qkvg = nn.Linear(c.hidden_size, 4 * c.hidden_size)
        self.o = nn.Linear(c.hidden_size, c.hidden_size)

    def forward(self, x, cache, mask):
        q, k, v, g = rearrange(self.qkvg(x), "b t (n h d) -> n b h t d", n=4, h=self.c.heads)
        if mask is not None:
            v = v * mask[:, None, -v.shape[-2] :, None]
        g = torch.nn.functional.logsigmoid(g) / 16
        state = None
        if cache is not None and len(cache) > self.layer:
            state = cache[self.layer]["recurrent_state"]
        f = fused_recurrent_gla if x.shape[1] == 1 else chunk_gla
        o, state = f(q.relu(), k.relu(), v, g, initial_state=state, output_final_state=cache is not None)
        if cache is not None:
            cache.update(recurrent_state=state, layer_idx=self.layer, offset=x.shape[1])
        return self.o(rearrange(o, "b h t d -> b t (h d)"))


class Windowed(Linear):
    def __init__(self, c, layer):
        super().__init__(c, layer)
        self.rotary_emb = Rotary(c.hidden_size // c.heads)

    def forward(self, x, cache, mask):
        t = x.shape[1]
        q, k, v, _ = rearrange(self.qkvg(x), "b t (n h d) -> n b t h d", n=4, h=self.c.heads)
        seen = 0 if cache is None else cache.get_seq_length(self.layer)
        q, k = self.rotary_emb(q, seen), self.rotary_emb(k, seen)
        if cache is not None:
            new = tuple(rearrange(y, "b t h d -> b 1 t (h d)") for y in (k, v))
            kwargs = {"window_size": self.c.window}
            held = cache.update(attn_state=new, layer_idx=self.layer, offset=t, cache_kwargs=kwargs)
            if seen:
                k, v = (rearrange(y, "b 1 t (h d) -> b t h d", h=self.c.heads) for y in held["attn_state"])
        return self.o(rearrange(self.attend(q, k, v, mask), "b t h d -> b t (h d)"))

    def attend(self, q, k, v, mask):
        rest = dict(causal=True, window_size=(self.c.window, 0))
        if mask is None:
            return flash_attn_func(q, k, v, **rest)
        b, t = q.shape[:2]
        mask = mask[:, -k.shape[1] :]
        v = unpad_input(v, mask)[0]
        k, rows, offsets_k, longest_k, _ = unpad_input(k, mask)
        if t == mask.shape[1]:
            q, offsets_q, longest_q = index_first_axis(q.flatten(0, 1), rows), offsets_k, longest_k
        else:
            q, offsets_q, longest_q = q.squeeze(1), torch.arange(b + 1, dtype=torch.int32, device=q.device), 1
            rows = offsets_q[:-1]
        o = flash_attn_varlen_func(q, k, v, offsets_q, offsets_k, longest_q, longest_k, **rest)
        return pad_input(o, rows, b, t)


class HybridForCausalLM(PreTrainedModel, FLAGenerationMixin):
    config_class = HybridConfig
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

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=False, labels=None, **kwargs):
        if use_cache and not isinstance(past_key_values, Cache):
            past_key_values = Cache.from_legacy_cache(past_key_values)
        x = self.embed(input_ids)
        for n, mixer in enumerate(self.mixers):
            y = mixer(self.norms[2 * n](x), past_key_values if use_cache else None, attention_mask)
            y, x = self.norms[2 * n + 1](y, x, True)
            x = x + self.mlps[n](y)
        logits = self.head(x)
        loss = None
        if labels is not None:
            loss = FusedCrossEntropyLoss()(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)

"""``gla_swa`` written down naively, one sequence at a time: token loops, dense masks, repeated heads; only torch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def rope(x: Tensor, theta: float) -> Tensor:
    """x is [T, H, D]; token t has position t."""
    half = x.shape[-1] // 2
    out = x.clone()
    for t in range(x.shape[0]):
        for i in range(half):
            angle = torch.tensor(t * theta ** (-i / half), dtype=torch.float64)
            cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
            out[t, :, i] = x[t, :, i] * cos - x[t, :, i + half] * sin
            out[t, :, i + half] = x[t, :, i + half] * cos + x[t, :, i] * sin
    return out


def spikes(x: Tensor, k: float) -> Tensor:
    threshold = (x.abs().mean(-1, keepdim=True) / k).clamp(1e-5, 1e4)
    return (x / threshold).round() * threshold


def int8(x: Tensor) -> Tensor:
    scale = (x.abs().amax(-1, keepdim=True) / 127).clamp(1e-5, 1e4)
    return (x / scale).round().clamp(-128, 127) * scale


class Reference:
    """A model from the tensors of a checkpoint, by their names on disk."""

    def __init__(self, config: dict[str, Any], weights: Weights, dtype: torch.dtype = torch.float64) -> None:
        self.c = (
            dict(
                gate_logit_normalizer=16,
                attn_layers=list(range(1, config["num_hidden_layers"], 2)),
                parallel_attention=False,
                full_attn_layers=[],
                num_sink_tokens=0,
                num_experts=0,
                dense_layers=[],
                spike_down_proj=False,
            )
            | config
        )
        self.raw = weights
        self.w = {name: tensor.to(dtype) for name, tensor in weights.items()}
        self.spiking = any(name.endswith("weight_quantizer.scales") for name in weights)
        self.dim = config["hidden_size"] // config["num_attention_heads"]

    def linear(self, x: Tensor, name: str) -> Tensor:
        """A projection; with scales on disk, fake-quantised weights that read spikes."""
        weight = self.w[name + ".weight"]
        scales = self.raw.get(name + ".weight_quantizer.scales")
        if scales is not None and (not name.endswith("down_proj") or self.c["spike_down_proj"]):
            rows, groups, _ = scales.shape
            codes = (self.raw[name + ".weight"].view(rows, groups, -1) / scales).round()  # in float32, as released
            weight = (codes.to(weight.dtype) * scales.to(weight.dtype)).view(rows, -1)
            x = spikes(x, 3.0)
        y = x @ weight.T
        bias = self.w.get(name + ".bias")
        return y if bias is None else y + bias

    def recall(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, prefix: str) -> Tensor:
        """q [T, Hq, D], k and v [T, H, D]."""
        group = q.shape[1] // k.shape[1]
        if self.c.get("key_tied_decay"):
            k, q = torch.sigmoid(k), torch.sigmoid(q)
            decay = 1 - k
        else:
            if prefix + "gk_proj.0.weight" in self.w:
                gate = self.linear(self.linear(x, prefix + "gk_proj.0"), prefix + "gk_proj.1")
            else:
                gate = self.linear(x, prefix + "gk_proj")
            decay = torch.sigmoid(gate).pow(1 / self.c["gate_logit_normalizer"]).view(k.shape)
            k, q = k.clamp(min=0), q.clamp(min=0)
        k, v, decay = (y.repeat_interleave(group, 1) for y in (k, v, decay))
        state, rows = torch.zeros(q.shape[1], self.dim, self.dim, dtype=q.dtype), []
        for t in range(q.shape[0]):
            state = decay[t][:, :, None] * state + k[t][:, :, None] * v[t][:, None, :]
            rows.append((q[t][:, :, None] * state).sum(1) * self.dim**-0.5)
        return torch.stack(rows)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, window: int | None, sinks: int) -> Tensor:
        group, length = q.shape[1] // k.shape[1], q.shape[0]
        q, k = rope(q, self.c["rope_theta"]), rope(k, self.c["rope_theta"])
        if self.spiking:
            q, k, v = spikes(q, 3.0), int8(k), int8(v)
        k, v = (y.repeat_interleave(group, 1) for y in (k, v))
        seen = torch.zeros(length, length, dtype=torch.bool)
        for i in range(length):
            for j in range(length):
                if i < sinks or j < sinks:
                    seen[i, j] = j < sinks
                else:
                    seen[i, j] = j <= i and (window is None or j > i - window)
        scores = torch.einsum("ihd,jhd->hij", q, k) * self.dim**-0.5
        return torch.einsum("hij,jhd->ihd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)

    def mlp(self, x: Tensor, prefix: str) -> Tensor:
        inner = F.silu(self.linear(x, prefix + "gate_proj")) * self.linear(x, prefix + "up_proj")
        return self.linear(inner, prefix + "down_proj")

    def experts(self, x: Tensor, prefix: str) -> Tensor:
        out = self.mlp(x, prefix + "shared.")
        gate, up, down = (self.w[prefix + n] for n in ("gate_proj", "up_proj", "down_proj"))
        for t in range(x.shape[0]):
            p = torch.sigmoid(self.w[prefix + "router.weight"] @ x[t])
            e = int(p.argmax())
            out[t] += p[e] * (down[e] @ (F.silu(gate[e] @ x[t]) * (up[e] @ x[t])))
        return out

    def logits(self, tokens: list[int], window: int | None = None) -> Tensor:
        """Logits of each next token, [T, vocab_size]; ``window`` replaces that of training."""
        c, eps, sinks = self.c, self.c["norm_eps"], self.c["num_sink_tokens"]
        window = window or c["sliding_window"] + 1
        x = self.w["model.embeddings.weight"][torch.tensor(tokens)]
        if sinks:
            x = torch.cat((self.w["model.sink_tokens"], x))
        for i in range(c["num_hidden_layers"]):
            layer, attn = f"model.layers.{i}.", f"model.layers.{i}.attn."
            h = norm(x, self.w[layer + "attn_norm.weight"], eps)
            q, k, v = (self.linear(h, attn + n).unflatten(1, (-1, self.dim)) for n in ("q_proj", "k_proj", "v_proj"))
            o = torch.zeros_like(q)
            if c["parallel_attention"]:
                w = self.w[attn + "branch_weights"]
                visible = None if i in c["full_attn_layers"] else window
                o = w[0] * norm(self.recall(h, q, k, v, attn), self.w[attn + "g_norm.weight"], eps)
                o = o + w[1] * norm(self.attend(q, k, v, visible, sinks), self.w[attn + "s_norm.weight"], eps)
            elif i in c["attn_layers"]:
                o = self.attend(q, k, v, window, 0)
            else:
                o = norm(self.recall(h, q, k, v, attn), self.w[attn + "g_norm.weight"], eps)
            x = x + self.linear(o.flatten(1), attn + "o_proj")
            h = norm(x, self.w[layer + "mlp_norm.weight"], eps)
            sparse = c["num_experts"] and i not in c["dense_layers"]
            x = x + (self.experts if sparse else self.mlp)(h, layer + "mlp.")
        return norm(x, self.w["model.norm.weight"], eps)[sinks:] @ self.w["lm_head.weight"].T

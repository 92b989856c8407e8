"""The blocks of SpikingBrain-1.0 models for transformers, under the released names of classes, keys and tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from ..nn import Layout, rotary_angles
from .block import HybridBlock, RMSNorm
from .cache import AttentionState, GLAswaCache, given_cache
from .configuration import GLAswaConfig
from .pretrained import GLAswaPreTrainedModel
from .sequences import sequence_begins
from .transformers_versions import CACHE


class GLAswaModel(GLAswaPreTrainedModel):
    """The blocks of a ``gla_swa`` model, without the output projection.

    Args:
        config: Sizes of the model.

    Source: SpikingBrain technical report, section 3.
    """

    def __init__(self, config: GLAswaConfig) -> None:
        config.check()  # of what was set since it was made, as from_pretrained does with its keywords
        super().__init__(config)
        self.embeddings: nn.Module = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(HybridBlock(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.sink_tokens: nn.Parameter | None = None
        if config.num_sink_tokens:
            self.sink_tokens = nn.Parameter(torch.empty(config.num_sink_tokens, config.hidden_size))
        for name in config.int8_projections:
            projection = self.get_submodule(name.removeprefix("model."))
            projection.codes = projection.codes.to(torch.int8)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of the tokens."""
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the embedding of the tokens."""
        self.embeddings = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: GLAswaCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache: GLAswaCache | None = None,
        position_ids: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        cu_seq_lens_k: Tensor | None = None,
        max_length_q: int | None = None,
        max_length_k: int | None = None,
        seq_idx: Tensor | None = None,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Reads T columns of tokens, one or many.

        However a sequence is cut into calls, whatever is masked, and whatever else is packed into its row, each real
        token gets what it gets in a call that reads its sequence whole and alone.

        Args:
            input_ids: Tokens, [B, T], int64.
            attention_mask: Which columns hold a real token, 1 or 0, [B, >= T]; the last T columns are those of this
                call, those before are as earlier calls read them. Masked tokens may stand anywhere. All are real if
                absent.
            past_key_values: What came before, advanced in place; a call that ends in an error may break it.
            inputs_embeds: Instead of input_ids, [B, T, hidden_size].
            use_cache: Return a cache; if absent ``config.use_cache``, but not in training or with packed sequences.
            output_attentions: Must not be true: attention probabilities are never formed. This and the next two are
                the configuration's if absent.
            output_hidden_states: Also return the input of every block and the final output.
            return_dict: False returns a tuple.
            cache: Another name of past_key_values, that of transformers from 5.24 on.
            position_ids: Place of each token in its sequence, [B or 1, T]; at 0 another sequence begins in the row.
            cu_seq_lens_q: Offsets of packed sequences in the B * T columns, [S + 1], as flash-attn has them.
            cu_seq_lens_k: The same.
            max_length_q: An upper bound of the sequences' lengths.
            max_length_k: The same.
            seq_idx: Which sequence each token belongs to, [B or 1, T].

        Returns:
            ``last_hidden_state`` [B, T, hidden_size], at a masked place that of the last real token of this call
            before it in its row, or zero; the cache, by the name that transformers gives it; and ``hidden_states``.

        Raises:
            TypeError: The cache is not a :class:`GLAswaCache`.
            ValueError: Arguments contradict each other or the cache, or the cache is another model's.
            RuntimeError: The cache was broken by an earlier call.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("GLAswaModel: expected either input_ids or inputs_embeds")
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions:
            raise ValueError("GLAswaModel: output_attentions is True, but attention probabilities are never formed")
        cache = given_cache(past_key_values, cache)
        x = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        batch, time = x.shape[:2]
        if cache is not None:
            cache.check(self.config, batch)
        mask = real_columns(attention_mask, (batch, time), cache)
        packing = (position_ids, cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k, seq_idx)
        begins = sequence_begins((batch, time), mask, None if cache is None else cache.lengths, *packing)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and begins is None
        if begins is not None and (use_cache or cache is not None):
            raise ValueError("GLAswaModel: a row holds several sequences, expected no cache and use_cache not True")
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            use_cache = False  # a block that is run again for its gradient must not advance a state twice
            if cache is not None:
                raise ValueError("GLAswaModel: past_key_values is given in training with gradient checkpointing")
        if use_cache and cache is None:
            cache = GLAswaCache()
        sink_tokens = self.sink_tokens if cache is None or not cache.columns else None
        sinks = 0 if sink_tokens is None else len(sink_tokens)
        layout = Layout.of(batch, time, x.device, mask, in_place=not sinks, begins=begins)
        states: Sequence[AttentionState | None] = [None] * len(self.layers)
        places = layout.places
        if cache is not None:
            cache.begin()
            if not cache.layers:
                cache.fill(
                    self.config, [cast(HybridBlock, block).attn.initial_state(batch, x) for block in self.layers]
                )
            states, places = cache.layers, cache.places(layout)
        x = layout.pack(x)
        positions = self.config.num_sink_tokens + places
        if sink_tokens is not None:
            x = torch.cat((sink_tokens[None].to(x.dtype), x), 1)
            positions = torch.cat((torch.arange(sinks, device=x.device), positions))
        if layout.step:
            positions = positions[:, None]
        angles = rotary_angles(positions, self.config.head_dim, self.config.rope_theta, x.dtype)
        hidden = []
        for block, state in zip(self.layers, states, strict=True):
            if output_hidden_states:
                hidden.append(layout.unpack(x[:, sinks:]))
            x = block(x, layout, angles, state, sinks)
        if cache is not None:
            cache.advance(layout)
        last = layout.unpack(self.norm(x[:, sinks:]))
        output = BaseModelOutputWithPast(
            last_hidden_state=last,
            hidden_states=(*hidden, last) if output_hidden_states else None,
            **{CACHE: cache if use_cache else None},
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()


def real_columns(attention_mask: Tensor | None, shape: tuple[int, int], cache: GLAswaCache | None) -> Tensor | None:
    """The part of a mask that is about the columns of this call.

    Args:
        attention_mask: 1 for a real token, 0 for a masked one, [B, >= T].
        shape: B and T.
        cache: What earlier calls read; the mask must agree about it.

    Returns:
        Which columns of this call are real, bool [B, T]; None without a mask.

    Raises:
        ValueError: The mask has another shape or other values, or contradicts what earlier calls read.
    """
    if attention_mask is None:
        return None
    batch, time = shape
    read = 0 if cache is None else cache.columns
    given = list(attention_mask.shape)
    if len(given) != 2 or given[0] != batch or not time <= given[1] <= read + time:
        columns = f"at least {time}" if read else f"{time}"
        most = f" and at most {read + time}, of which earlier calls read {read}" if read else ""
        raise ValueError(f"GLAswaModel: attention_mask is {given}, expected [{batch}, {columns}{most}]")
    real = attention_mask.bool()
    if not torch.equal(real.to(attention_mask.dtype), attention_mask):
        raise ValueError(
            "GLAswaModel: attention_mask holds other values than 0 and 1; sequences that are packed into a row are "
            "told apart by position_ids, cu_seq_lens_q or seq_idx"
        )
    if cache is not None:
        cache.check_mask(real[:, : given[1] - time])
    return real[:, given[1] - time :]

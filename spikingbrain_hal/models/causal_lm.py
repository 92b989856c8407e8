"""SpikingBrain-1.0 language models for transformers: the blocks, the output projection, the loss and ``generate``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from .cache import GLAswaCache, given_cache
from .configuration import GLAswaConfig
from .modeling import GLAswaModel, real_columns
from .pretrained import GLAswaPreTrainedModel
from .sequences import sequence_begins
from .transformers_versions import CACHE


class GLAswaForCausalLM(GLAswaPreTrainedModel, GenerationMixin):
    """A ``gla_swa`` language model: SpikingBrain-1.0 7B, its W8ASpike form, or the 76B architecture.

    Args:
        config: Sizes of the model.

    Source: SpikingBrain technical report, section 3.
    """

    accepts_loss_kwargs = True  # num_items_in_batch, without which Trainer would not count over accumulated batches
    _tied_weights_keys = {"lm_head.weight": "model.embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: GLAswaConfig) -> None:
        super().__init__(config)
        self.model: Any = GLAswaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head: nn.Module = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of the tokens."""
        embeddings: nn.Module = self.model.embeddings
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the embedding of the tokens."""
        self.model.embeddings = value

    def get_output_embeddings(self) -> nn.Module:
        """The output projection."""
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replaces the output projection."""
        self.lm_head = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: GLAswaCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: GLAswaCache | None = None,
        position_ids: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        cu_seq_lens_k: Tensor | None = None,
        max_length_q: int | None = None,
        max_length_k: int | None = None,
        seq_idx: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """As :meth:`GLAswaModel.forward`, with logits.

        Args:
            input_ids: As there.
            attention_mask: As there.
            past_key_values: As there.
            inputs_embeds: As there.
            labels: Tokens to predict, [B, T], -100 where there is none; they are shifted here. The first token of a
                sequence is predicted from nothing, so its label is not used.
            use_cache: As there.
            output_attentions: As there.
            output_hidden_states: As there.
            return_dict: As there.
            logits_to_keep: How many last columns get logits, 0 for all, or which ones, [n], int64.
            cache: As there.
            position_ids: As there.
            cu_seq_lens_q: As there.
            cu_seq_lens_k: As there.
            max_length_q: As there.
            max_length_k: As there.
            seq_idx: As there.
            num_items_in_batch: What the sum of the tokens' losses is divided by; how many there are if absent.

        Returns:
            ``logits`` [B, T or kept columns, vocab_size], and ``loss`` with labels.
        """
        packing = (position_ids, cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k, seq_idx)
        outputs = self.model(
            input_ids,
            attention_mask,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
            True,
            cache,
            *packing,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            if given_cache(past_key_values, cache) is None:  # which rows of several sequences don't go with
                mask = real_columns(attention_mask, (labels.shape[0], labels.shape[1]), None)
                begins = sequence_begins((labels.shape[0], labels.shape[1]), mask, None, *packing)
                labels = labels if begins is None else labels.masked_fill(begins, -100)
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.vocab_size, num_items_in_batch=num_items_in_batch
            )
        output = CausalLMOutputWithPast(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, **{CACHE: outputs.get(CACHE)}
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: GLAswaCache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = None,
        cache: GLAswaCache | None = None,
        cache_position: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> dict[str, Any]:
        """What ``generate`` passes on to the next call.

        Args:
            input_ids: All tokens so far, or a part of the prompt.
            next_sequence_length: How many of them are unread; transformers 5 says it.
            past_key_values: As in :meth:`forward`.
            attention_mask: As there.
            inputs_embeds: What the prompt is read from, instead of tokens.
            is_first_iteration: The prompt has not been read yet; transformers 5 says it.
            cache: As in :meth:`forward`.
            cache_position: The columns that are unread; transformers 4 says it.
            position_ids: As in :meth:`forward`; of those that transformers makes itself none is passed on, as the
                model counts the real tokens.
            use_cache: As in :meth:`forward`.
            logits_to_keep: As there.
            output_attentions: As there.
            output_hidden_states: As there.

        Raises:
            ValueError: The cache has read all that is given.
        """
        state = given_cache(past_key_values, cache)
        unread = next_sequence_length if cache_position is None else len(cache_position)
        if state is not None and unread is not None and unread < 1:
            raise ValueError(
                f"generate: the cache has read {state.columns} columns, expected the whole text from its beginning, "
                "with a token that is not read yet"
            )
        arguments = dict(
            next_sequence_length=next_sequence_length,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            cache_position=cache_position,
            position_ids=position_ids,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        given = {name: value for name, value in arguments.items() if value is not None}
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, **{CACHE: state}, **given)
        made = {"cache_position"}
        if position_ids is None or (cache_position is not None and _not_of_these(position_ids, cache_position)):
            made.add("position_ids")
        return {name: value for name, value in inputs.items() if name not in made}

    def _prepare_position_ids_for_generation(self, *args: Any) -> None:
        """None are needed, and those of transformers don't count on behind a mask."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any) -> None:
        given = given_cache(model_kwargs.pop("past_key_values", None), model_kwargs.pop("cache", None))
        if given is not None:
            if generation_config.use_cache is False:
                raise ValueError("generate: a cache is given and use_cache is False, expected one of them")
            model_kwargs[CACHE] = given
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args)
        if given is None and generation_config.use_cache:
            model_kwargs[CACHE] = GLAswaCache()


def _not_of_these(position_ids: Tensor, columns: Tensor) -> bool:
    """True of positions that transformers 4 made out of the columns, or that it did not continue for new tokens."""
    return position_ids.shape[1] <= int(columns[-1]) or torch.equal(position_ids, columns[None])

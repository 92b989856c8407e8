"""SpikingBrain-1.0 models for transformers, under the released names of classes, keys and tensors."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from ..nn import Layout, rotary_angles
from .attention import HybridAttention
from .block import HybridBlock, RMSNorm
from .cache import GLAswaCache
from .configuration import GLAswaConfig
from .experts import RoutedExperts
from .loading import load


class GLAswaPreTrainedModel(PreTrainedModel):
    """What the two models share: weights, their initial values and how they are loaded."""

    config_class = GLAswaConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("HybridBlock",)
    _skip_keys_device_placement = ("past_key_values",)
    _is_stateful = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Loads a checkpoint of safetensors, plain or W8ASpike.

        Args:
            pretrained_model_name_or_path: A folder, or a name on the Hugging Face hub.
            *args: As in transformers.
            **kwargs: As in transformers.

        Raises:
            ValueError: The checkpoint has no safetensors; if it is a pickle, the message names the command that
                converts it.
        """
        return load(super().from_pretrained, cls, pretrained_model_name_or_path, *args, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, RoutedExperts):
            for weight in (module.gate_proj, module.up_proj, module.down_proj):
                nn.init.normal_(weight, std=std)
        elif isinstance(module, HybridAttention) and hasattr(module, "branch_weights"):
            nn.init.constant_(module.branch_weights, 0.5)
        elif isinstance(module, GLAswaModel) and module.sink_tokens is not None:
            nn.init.normal_(module.sink_tokens, std=std)


class GLAswaModel(GLAswaPreTrainedModel):
    """The blocks of a ``gla_swa`` model, without the output projection.

    Args:
        config: Sizes of the model.

    Source: SpikingBrain technical report, section 3.
    """

    def __init__(self, config: GLAswaConfig) -> None:
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
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Reads T columns of tokens, one or many.

        However a sequence is cut into calls, and whatever is masked, each real token gets what it gets in a call
        that reads its sequence whole and alone.

        Args:
            input_ids: Tokens, [B, T], int64.
            attention_mask: Which columns hold a real token, [B, >= T]; the last T columns are those of this call.
                Masked tokens may stand anywhere. All are real if absent.
            past_key_values: What came before, advanced in place.
            inputs_embeds: Instead of input_ids, [B, T, hidden_size].
            use_cache: Return a cache; ``config.use_cache`` if absent, but not in training.
            output_attentions: Must not be true: attention probabilities are never formed.
            output_hidden_states: Also return the input of every block and the final output.
            return_dict: False returns a tuple.

        Returns:
            ``last_hidden_state`` [B, T, hidden_size], at a masked place that of the last real token of this call
            before it in its row, or zero; ``past_key_values``; and ``hidden_states``.

        Raises:
            ValueError: Arguments contradict each other.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("GLAswaModel: expected either input_ids or inputs_embeds")
        if output_attentions:
            raise ValueError("GLAswaModel: output_attentions is True, but attention probabilities are never formed")
        x = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        batch, time = x.shape[:2]
        if attention_mask is not None:
            if attention_mask.dim() != 2 or attention_mask.shape[0] != batch or attention_mask.shape[1] < time:
                raise ValueError(
                    f"GLAswaModel: attention_mask is {list(attention_mask.shape)}, expected [{batch}, at least {time}]"
                )
            attention_mask = attention_mask[:, -time:] if time else attention_mask[:, :0]
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        cache = past_key_values
        if self.gradient_checkpointing and self.training:
            use_cache = False  # a block that is run again for its gradient must not advance a state twice
            if cache is not None:
                raise ValueError("GLAswaModel: past_key_values is given in training with gradient checkpointing")
        if use_cache and cache is None:
            cache = GLAswaCache()
        if cache is not None and not cache.layers:
            cache.layers = [cast(HybridBlock, block).attn.initial_state(batch, x) for block in self.layers]
        sink_tokens = self.sink_tokens if cache is None or not cache.columns else None
        sinks = 0 if sink_tokens is None else len(sink_tokens)
        layout = Layout.of(batch, time, x.device, attention_mask, in_place=not sinks)
        x = layout.pack(x)
        positions = self.config.num_sink_tokens + (layout.places if cache is None else cache.advance(layout))
        if sink_tokens is not None:
            x = torch.cat((sink_tokens[None].to(x.dtype), x), 1)
            positions = torch.cat((torch.arange(sinks, device=x.device), positions))
        if layout.step:
            positions = positions[:, None]
        angles = rotary_angles(positions, self.config.head_dim, self.config.rope_theta, x.dtype)
        states = cache.layers if cache is not None else [None] * len(self.layers)
        hidden = []
        for block, state in zip(self.layers, states, strict=True):
            if output_hidden_states:
                hidden.append(layout.unpack(x[:, sinks:]))
            x = block(x, layout, angles, state, sinks)
        last = layout.unpack(self.norm(x[:, sinks:]))
        output = BaseModelOutputWithPast(
            last_hidden_state=last,
            past_key_values=cache if use_cache else None,
            hidden_states=(*hidden, last) if output_hidden_states else None,
        )
        return output.to_tuple() if return_dict is False else output


class GLAswaForCausalLM(GLAswaPreTrainedModel, GenerationMixin):
    """A ``gla_swa`` language model: SpikingBrain-1.0 7B, its W8ASpike form, or the 76B architecture.

    Args:
        config: Sizes of the model.

    Source: SpikingBrain technical report, section 3.
    """

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
        **loss_kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """As :meth:`GLAswaModel.forward`, with logits.

        Args:
            input_ids: As there.
            attention_mask: As there.
            past_key_values: As there.
            inputs_embeds: As there.
            labels: Tokens to predict, [B, T], -100 where there is none; they are shifted here.
            use_cache: As there.
            output_attentions: As there.
            output_hidden_states: As there.
            return_dict: As there.
            logits_to_keep: How many last columns get logits, 0 for all, or which ones, [n], int64.
            **loss_kwargs: Passed on to the loss.

        Returns:
            ``logits`` [B, T or kept columns, vocab_size], and ``loss`` with labels.
        """
        outputs = self.model(
            input_ids,
            attention_mask,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.vocab_size, **loss_kwargs)
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )
        return output.to_tuple() if return_dict is False else output

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What ``generate`` passes on: positions are left out, as the model counts the real tokens itself."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, **kwargs)
        return {name: value for name, value in inputs.items() if name not in ("position_ids", "cache_position")}

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any) -> None:
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args)
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache:
            model_kwargs["past_key_values"] = GLAswaCache()

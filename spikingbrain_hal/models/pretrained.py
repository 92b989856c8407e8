"""What the two models share: weights, their initial values and how they are loaded."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .attention import HybridAttention
from .configuration import GLAswaConfig
from .experts import RoutedExperts
from .loading import load


class GLAswaPreTrainedModel(PreTrainedModel):
    """The base class of the two models."""

    config_class = GLAswaConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("HybridBlock",)
    _skip_keys_device_placement = ("past_key_values", "cache")
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
        elif isinstance(sinks := getattr(module, "sink_tokens", None), nn.Parameter):
            nn.init.normal_(sinks, std=std)

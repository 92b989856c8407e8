"""SpikingBrain-1.0 for Hugging Face transformers, without remote code.

Importing this module registers the model type ``gla_swa``, so that ``AutoModelForCausalLM.from_pretrained(folder)``
loads SpikingBrain-1.0 7B and its W8ASpike form on every backend. Needs ``pip install spikingbrain-hal[models]``.
"""

try:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'spikingbrain_hal.models needs {error.name}: pip install "spikingbrain-hal[models]"', name=error.name
    ) from error

from .cache import AttentionState, GLAswaCache
from .causal_lm import GLAswaForCausalLM
from .configuration import GLAswaConfig
from .modeling import GLAswaModel
from .transformers_versions import warn_if_untested

__all__ = [
    "AttentionState",
    "GLAswaCache",
    "GLAswaConfig",
    "GLAswaForCausalLM",
    "GLAswaModel",
]

warn_if_untested()
AutoConfig.register("gla_swa", GLAswaConfig, exist_ok=True)
AutoModel.register(GLAswaConfig, GLAswaModel, exist_ok=True)
AutoModelForCausalLM.register(GLAswaConfig, GLAswaForCausalLM, exist_ok=True)

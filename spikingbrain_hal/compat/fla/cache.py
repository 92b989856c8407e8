"""fla's cache and generation mix-in for transformers; loaded only when a client imports ``fla.models.utils``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:

    class _TransformersCache: ...

    class GenerationMixin:
        def _update_model_kwargs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]: ...

    CACHE_NAME: str
else:
    try:
        from transformers.cache_utils import Cache as _TransformersCache
        from transformers.generation import GenerationMixin
    except ImportError as error:
        raise ImportError("fla.models.utils needs transformers: pip install 'spikingbrain-hal[models]'") from error
    _arguments = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    CACHE_NAME = "cache" if "cache" in _arguments else "past_key_values"

STATES = ("recurrent_state", "attn_state", "conv_state", "ffn_state")


class Cache(_TransformersCache):
    """What each layer carries from call to call: ``cache[layer]`` is a dict of the four :data:`STATES`.

    Tokens are counted for each layer. fla counts once, when the first layer is updated, so that the layers after it
    see a position one call too late.

    Args:
        seen_tokens: Tokens read before.
    """

    is_compileable = False
    time_axis = 1

    def __init__(self, seen_tokens: int = 0, **kwargs: Any) -> None:
        self.layers: list[Any] = []  # transformers looks here for layers of its own, of which there are none
        self.states: list[dict[str, Any]] = []
        self.seen_before = int(seen_tokens)
        self.seen: list[int] = []

    def __getitem__(self, layer_idx: int) -> dict[str, Any]:
        """The states of a layer.

        Raises:
            KeyError: The layer has none yet.
        """
        if layer_idx >= len(self.states):
            raise KeyError(f"Cache: layer {layer_idx} asked for, {len(self.states)} layers held")
        return self.states[layer_idx]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The states of each layer."""
        return iter(self.states)

    def __len__(self) -> int:
        """How many layers have states."""
        return len(self.states)

    def update(
        self,
        recurrent_state: Any = None,
        attn_state: Sequence[Tensor] | None = None,
        conv_state: Any = None,
        ffn_state: Any = None,
        layer_idx: int = 0,
        offset: int | None = 1,
        cache_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Stores the states of a layer; absent ones stay as they are.

        Args:
            recurrent_state: Replaces the one held.
            attn_state: Keys and values of the new tokens, appended to those held.
            conv_state: Replaces the one held.
            ffn_state: Replaces the one held.
            layer_idx: The layer.
            offset: How many tokens are new.
            cache_kwargs: ``{"window_size": W}`` keeps the last W keys and values.

        Returns:
            The layer's states. Of keys and values those that the new tokens can see: for one token W of them, its own
            included, and for several the W before them too, which fla has rolled away.

        Raises:
            ValueError: attn_state is not a tuple or list of tensors, or window_size no positive number. Nothing has
                changed then, as after any other error.
        """
        if attn_state is not None and not isinstance(attn_state, tuple | list):
            raise ValueError(f"Cache.update: attn_state is a {type(attn_state).__name__}, expected a tuple of tensors")
        window = (cache_kwargs or {}).get("window_size")
        if window is not None and window < 1:
            raise ValueError(f"Cache.update: window_size is {window}, expected at least 1 or None")
        state: dict[str, Any] = self.states[layer_idx] if layer_idx < len(self.states) else dict.fromkeys(STATES)
        new = dict(recurrent_state=recurrent_state, conv_state=conv_state, ffn_state=ffn_state)
        seen = None
        if attn_state is not None:
            held = [None] * len(attn_state) if state["attn_state"] is None else state["attn_state"]
            pairs = [self._appended(x, y, window) for x, y in zip(held, attn_state, strict=True)]
            seen, new["attn_state"] = (tuple(side) for side in zip(*pairs, strict=True))
        while len(self.states) <= layer_idx:
            self.states.append(dict.fromkeys(STATES))
            self.seen.append(self.seen_before)
        self.states[layer_idx].update((name, value) for name, value in new.items() if value is not None)
        self.seen[layer_idx] += 1 if offset is None else offset
        return self.states[layer_idx] if seen is None else {**self.states[layer_idx], "attn_state": seen}

    def _appended(self, held: Tensor | None, new: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
        """The keys or values that new tokens can see, and those that stay, which hold no memory of others."""
        axis, steps = self.time_axis, new.shape[self.time_axis]
        if window is None or held is None:
            seen = new if held is None else torch.cat((held, new), axis)
            kept = self._last(seen, window)
            return seen, kept if kept is seen else kept.clone()
        kept = self._last(new, window)
        kept = kept.clone() if steps >= window else torch.cat((self._last(held, window - steps), new), axis)
        return kept if steps == 1 else torch.cat((self._last(held, window), new), axis), kept

    def _last(self, x: Tensor, count: int | None) -> Tensor:
        """The last so many steps; all of them if None."""
        length = x.shape[self.time_axis]
        return x if count is None or count >= length else x.narrow(self.time_axis, length - count, count)

    def get_seq_length(self, layer_idx: int | None = 0, cache_position: Any = None) -> int:
        """How many tokens a layer has read; 0 if it has no states."""
        layer = layer_idx or 0
        return self.seen[layer] if layer < len(self.seen) else 0

    def get_max_length(self) -> int | None:
        """None: there is no limit."""
        return None

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """-1: there is no limit."""
        return -1

    def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> tuple[int, int]:
        """Length and offset of the mask for query_length more tokens, given as a number or as their positions."""
        new = query_length if isinstance(query_length, int) else int(query_length.shape[0])
        return self.get_seq_length(layer_idx) + new, 0

    def _take(self, rows: Callable[[int], Tensor]) -> None:
        """Takes rows of the batch.

        Args:
            rows: Gives the numbers of the rows to take, of how many rows there are.
        """
        batch = self._batch()
        if batch is None:
            return
        chosen = rows(batch)

        def taken(value: Any) -> Any:
            if isinstance(value, tuple | list):
                return type(value)(taken(x) for x in value)
            return _rows_of(value, chosen.to(value.device), batch) if isinstance(value, Tensor) else value

        self.states = [{name: taken(value) for name, value in state.items()} for state in self.states]

    def _batch(self) -> int | None:
        """How many rows the batch has: as many as keys have, or else the smallest state; None without any."""
        sizes: dict[bool, list[int]] = {True: [], False: []}
        for state in self.states:
            for name, value in state.items():
                parts = value if isinstance(value, tuple | list) else (value,)
                sizes[name == "attn_state"] += [x.shape[0] for x in parts if isinstance(x, Tensor)]
        return min(sizes[True] or sizes[False], default=None)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Takes the rows of the batch that a beam search goes on with.

        Raises:
            ValueError: A state's first axis is no multiple of the batch.
        """
        self._take(lambda batch: beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each row of the batch."""
        self._take(lambda batch: torch.arange(batch).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Takes rows of the batch, given by number or as a mask of them."""
        self._take(lambda batch: indices.nonzero().flatten() if indices.dtype == torch.bool else indices)

    def crop(self, max_length: int) -> None:
        """Refuses: a recurrent state can't forget its last tokens.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("Cache.crop: a recurrent state cannot be rolled back to an earlier token")

    def reset(self) -> None:
        """Forgets everything."""
        self.states, self.seen, self.seen_before = [], [], 0

    def to_legacy_cache(self) -> tuple[dict[str, Any], ...]:
        """The states of each layer."""
        return tuple(self.states)

    @classmethod
    def from_legacy_cache(cls, past_key_values: Any = None, seen_tokens: int = 0, **kwargs: Any) -> Cache:
        """A cache that holds the states of a sequence of dicts; anything else gives an empty one."""
        cache = cls(seen_tokens)
        if isinstance(past_key_values, tuple | list):
            cache.states = [dict(state) for state in past_key_values]
            cache.seen = [cache.seen_before] * len(cache.states)
        return cache


class Cache01(Cache):
    """:class:`Cache` of fla 0.1, whose keys and values have time before the last axis."""

    time_axis = -2


def _rows_of(state: Tensor, rows: Tensor, batch: int) -> Tensor:
    """Rows of a state, [batch, ...] or [batch + batch * N, ...]: N partitions of each row lie behind all rows."""
    if state.shape[0] % batch:
        raise ValueError(f"Cache: a state is {list(state.shape)}, expected a first axis that B={batch} divides")
    common = state[:batch].index_select(0, rows)
    if state.shape[0] == batch:
        return common
    parts = state[batch:].unflatten(0, (batch, -1)).index_select(0, rows)
    return torch.cat((common, parts.flatten(0, 1)))


class FLAGenerationMixin(GenerationMixin):
    """``generate`` for models whose cache is a :class:`Cache`."""

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool = True,
        logits_to_keep: int | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The inputs of the next call: of input_ids those that the cache has not seen.

        The cache is called past_key_values, or cache since transformers 5.24; models of released code know the former.
        """
        if past_key_values is None:
            past_key_values = cache
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        inputs: dict[str, Any] = {}
        if inputs_embeds is not None and not seen:
            inputs["inputs_embeds"] = inputs_embeds
        elif input_ids is not None:
            new = max(input_ids.shape[1] - seen, 1)
            inputs["input_ids"] = input_ids[:, -new:].contiguous()
        if logits_to_keep is not None:
            inputs["logits_to_keep"] = logits_to_keep
        return {
            **inputs,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            "attention_mask": attention_mask,
        }

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Hands the cache of a call on to the next one, under the name that transformers looks for."""
        updated: dict[str, Any] = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        if CACHE_NAME == "cache" and outputs.get("past_key_values") is not None:
            updated[CACHE_NAME] = outputs["past_key_values"]
        return updated

"""Finding Whisper's encoder in a model: Whisper's own, and the audio towers of language models that share it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


# By the encoder's `config.model_type`: how many of its tokens the rest of the model joins into one. Of a number that this
# does not divide, tokens would be lost, or joined with those of the next clip of the batch.
JOINED_TOKENS: dict[str, Callable[[Any], int]] = {
    "whisper": lambda config: 1,
    "qwen2_audio_encoder": lambda config: 2,
    "voxtral_encoder": lambda config: config.intermediate_size // config.d_model,
}


def whisper_encoders(model: Any) -> list[Any]:
    """Return the modules of `model`, itself among them, that are Whisper's encoder."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return [module for module in modules if _is_encoder(module)]


def joined_tokens(encoder: Any) -> int:
    """Return how many tokens of an encoder become one behind it."""
    return JOINED_TOKENS[encoder.config.model_type](encoder.config)


def _is_encoder(module: nn.Module) -> bool:
    is_of_type = getattr(getattr(module, "config", None), "model_type", None) in JOINED_TOKENS
    return is_of_type and hasattr(module, "conv2") and hasattr(module, "embed_positions")

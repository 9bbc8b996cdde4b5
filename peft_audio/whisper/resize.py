"""Changing the input length of Whisper's encoder, which pads every clip to 30 seconds."""

from __future__ import annotations

import math
import warnings
from typing import Any, Optional

import torch
from torch import nn

from ..upstream.peft_modules import has_adapters
from ..upstream.transformers_models import replaces, whisper_positions
from ..utils.validation import is_number, require
from .encoders import joined_tokens, whisper_encoders


POSITIONS = "max_source_positions"  # field of the encoder's configuration
TOKENS_PER_SECOND = 50
FRAMES_PER_TOKEN = 2  # the stride of the second convolution
TOLERANCE = 1e-2  # of positions in half precision


def resize_whisper(model: nn.Module, max_seconds: float, feature_extractor: Optional[Any] = None) -> nn.Module:
    """Make a Whisper-type encoder take clips of up to `max_seconds` instead of 30 seconds, in place.

    A clip of one second then has 50 tokens instead of 1500. The first `50 * max_seconds` (rounded up) positions stay as they
    are; for more than there are, those behind are computed by Whisper's formula.

    Call this before `get_peft_model`. An adapter remembers the length, `AutoPeftModelForAudioClassification` restores it.

    Args:
        model: a Whisper model, with or without a head or a decoder; or one with the encoder of Qwen2-Audio or Voxtral,
            or such an encoder itself.
        max_seconds: the new length.
        feature_extractor: the model's `WhisperFeatureExtractor`, or a processor that has one, set to the new length too.
            Its files hold whole seconds only.

    Returns:
        The same model; `max_source_positions` of its configuration has the new number of tokens.

    Raises:
        ValueError: if the model has no such encoder, or has adapters; if `max_seconds` is less than one token (0.02
            seconds), or gives a number of tokens that the model cannot join behind the encoder; for a longer input, if
            the positions are not sinusoidal.

    Examples:
        >>> config = WhisperConfig(d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16)
        >>> model = peft_audio.resize_whisper(WhisperForAudioClassification(config), max_seconds=5)
        >>> model.config.max_source_positions
        250
    """
    encoder = _encoder(model)
    require(is_number(max_seconds) and math.isfinite(max_seconds), "max_seconds", "a number of seconds", max_seconds)
    # 0.1 seconds are 5 tokens, though 50 * 0.1 may be a little more.
    num_tokens = math.ceil(round(TOKENS_PER_SECOND * max_seconds, 6))
    require(num_tokens > 0, "max_seconds", f"at least one token ({1 / TOKENS_PER_SECOND} seconds)", max_seconds)
    extractor = _checked_feature_extractor(feature_extractor)
    resize_positions(model, encoder, num_tokens)
    if extractor is not None:
        fit_feature_extractor(extractor, num_tokens)
        _warn_of_files(extractor.chunk_length)
    return model


def _encoder(model: Any) -> Any:
    encoders = whisper_encoders(model)
    if len(encoders) != 1 or has_adapters(model):
        raise ValueError(
            "resize_whisper takes a model with one encoder of Whisper's kind (Whisper, Qwen2-Audio, Voxtral) and without "
            f"adapters, got {type(model).__name__}. Resize the model first, then call get_peft_model."
        )
    return encoders[0]


def restore_positions(model: nn.Module, num_tokens: int) -> None:
    """Give a freshly loaded model the number of tokens that an adapter was trained with, in place."""
    resize_positions(model, _encoder(model), num_tokens)


def resize_positions(model: Any, encoder: Any, num_tokens: int) -> None:
    """Give the encoder `num_tokens` positions, and note the number in the configurations; see `resize_whisper`.

    Raises:
        ValueError: as there.
    """
    joined = joined_tokens(encoder)
    if num_tokens % joined:
        seconds = -(-num_tokens // joined) * joined / TOKENS_PER_SECOND
        raise ValueError(
            f"`max_seconds` must give a multiple of {joined} tokens on {type(model).__name__}, which joins as many into "
            f"one, got {num_tokens}. Use max_seconds={seconds:g}."
        )
    old = encoder.embed_positions.weight
    if num_tokens != old.shape[0]:
        values = old.detach()[:num_tokens].clone() if num_tokens < old.shape[0] else _longer(old.detach(), num_tokens)
        encoder.embed_positions = nn.Embedding.from_pretrained(values, freeze=not old.requires_grad)
        replaces(encoder.embed_positions.weight, old)
    encoder.max_source_positions = num_tokens
    for config in {id(config): config for config in (encoder.config, model.config)}.values():
        if hasattr(config, POSITIONS):
            setattr(config, POSITIONS, num_tokens)


def _longer(old: torch.Tensor, num_tokens: int) -> torch.Tensor:
    positions = whisper_positions(num_tokens, old.shape[1]).to(old)
    if not torch.allclose(positions[: len(old)], old, atol=TOLERANCE):
        raise ValueError(
            f"`max_seconds` must be at most {len(old) / TOKENS_PER_SECOND:g} on this model, got "
            f"{num_tokens / TOKENS_PER_SECOND:g}: its positions are not Whisper's sinusoids, so none can be computed behind "
            "them."
        )
    return torch.cat([old, positions[len(old) :]])


def _checked_feature_extractor(given: Any) -> Any:
    extractor = getattr(given, "feature_extractor", given)
    needed = ("chunk_length", "n_samples", "nb_max_frames", "hop_length", "sampling_rate")
    if extractor is not None and not all(hasattr(extractor, name) for name in needed):
        raise ValueError(
            f"`feature_extractor` must be a WhisperFeatureExtractor or a processor with one, got {type(extractor).__name__}."
        )
    return extractor


def fit_feature_extractor(extractor: Any, num_tokens: int) -> None:
    """Let a `WhisperFeatureExtractor` pad and cut clips to as many tokens of the encoder."""
    seconds = num_tokens / TOKENS_PER_SECOND
    extractor.chunk_length = int(seconds) if seconds.is_integer() else seconds
    extractor.nb_max_frames = FRAMES_PER_TOKEN * num_tokens
    extractor.n_samples = extractor.nb_max_frames * extractor.hop_length


def _warn_of_files(seconds: float) -> None:
    if not isinstance(seconds, int):
        warnings.warn(
            f"The feature extractor now pads to {seconds:g} seconds, but once saved it cannot be loaded with a length that is "
            f"no whole number of seconds. If you save it, use max_seconds={math.ceil(seconds)}.",
            stacklevel=3,
        )

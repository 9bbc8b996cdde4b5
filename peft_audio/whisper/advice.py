"""What padding costs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from .padding import padding_mask
from .resize import FRAMES_PER_TOKEN, TOKENS_PER_SECOND


FRAMES_PER_SECOND = FRAMES_PER_TOKEN * TOKENS_PER_SECOND


def padding_advice(feature_extractor: Any, clips: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield what padding costs and how to avoid it; nothing where the clips fill half of Whisper's input or more.

    Args:
        feature_extractor: the model's `WhisperFeatureExtractor`.
        clips: of which `input_features` are `(mel bins, frames)`, as it makes them.
    """
    frames = max((int(padding_mask(torch.as_tensor(clip["input_features"])[None]).sum()) for clip in clips), default=0)
    longest = -(-frames // FRAMES_PER_SECOND)
    length = feature_extractor.nb_max_frames / FRAMES_PER_SECOND
    if frames and longest <= length / 2:
        yield (
            f"The longest clip has {longest} s, but the model pads each to {length:g} s: {length * TOKENS_PER_SECOND:.0f} tokens "
            f"instead of {longest * TOKENS_PER_SECOND}. With max_seconds={longest} (resize_whisper) a step is about "
            f"{length / longest:.0f} times as fast."
        )

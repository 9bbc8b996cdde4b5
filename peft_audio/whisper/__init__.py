"""Whisper's encoder: other input lengths, and clips that are shorter than the input."""

from .advice import padding_advice
from .padding import WithPaddingMask, padding_mask, use_padding_mask
from .resize import resize_whisper


__all__ = ["WithPaddingMask", "padding_advice", "padding_mask", "resize_whisper", "use_padding_mask"]

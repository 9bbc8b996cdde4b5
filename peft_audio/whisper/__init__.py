"""Whisper's encoder: other input lengths, and clips that are shorter than the input."""

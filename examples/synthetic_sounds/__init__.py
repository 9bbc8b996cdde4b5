"""Generated sounds: many source types, each with a temporal pattern, in a random acoustic setting.

A clip is made in four steps, all driven by one `numpy.random.Generator`, so a seed always gives the same clip:

1. a *source* is rendered (a tone, a noise, a struck bar, a bark-like burst, ...);
2. a *pattern* places it in time (steady, fading, tremolo, one event, regular events, ...);
3. equalization, reverberation and background noise are added;
4. the clip gets its length and its level.

Sources and patterns live in registries by name. Those marked as held out never appear in pretraining; they make the
tasks on which a pretrained backbone is judged.

Waveforms are mono, float32, sampled at 16 kHz.
"""

# Importing them fills the registries. The order is that of the labels of a pretrained model, so it stays.
from . import sustained, events, held_out, patterns  # noqa: F401, I001
from .clips import (
    HELD_OUT_PATTERNS,
    HELD_OUT_SOURCES,
    PATTERNS,
    SOURCES,
    Sound,
    compatible_patterns,
    generate,
    generate_any,
    render_dry,
)
from .dsp import CLIP_SAMPLES, CLIP_SECONDS, SAMPLING_RATE
from .registry import Pattern, Source


__all__ = [
    "CLIP_SAMPLES",
    "CLIP_SECONDS",
    "HELD_OUT_PATTERNS",
    "HELD_OUT_SOURCES",
    "PATTERNS",
    "SAMPLING_RATE",
    "SOURCES",
    "Pattern",
    "Sound",
    "Source",
    "compatible_patterns",
    "generate",
    "generate_any",
    "render_dry",
]

"""Whole clips: a source placed in time by a pattern, in a random acoustic setting."""

from typing import NamedTuple

import numpy as np
from scipy import fft

from . import dsp
from .registry import ALL_PATTERNS, ALL_SOURCES


class Sound(NamedTuple):
    """One generated clip and what it is made of."""

    waveform: np.ndarray
    source: str
    pattern: str


SOURCES = {name: source for name, source in ALL_SOURCES.items() if not source.held_out}
HELD_OUT_SOURCES = {name: source for name, source in ALL_SOURCES.items() if source.held_out}
PATTERNS = {name: pattern for name, pattern in ALL_PATTERNS.items() if not pattern.held_out}
HELD_OUT_PATTERNS = {name: pattern for name, pattern in ALL_PATTERNS.items() if pattern.held_out}


def compatible_patterns(source: str, patterns: tuple[str, ...] = tuple(PATTERNS)) -> tuple[str, ...]:
    """The patterns, out of `patterns`, that can place this source in time.

    Events need onsets, sounds with a rhythm of their own need an envelope, sustained sounds take both.
    """
    kind = _lookup(ALL_SOURCES, "source", source).kind
    if kind == "sustained":
        return tuple(patterns)
    return tuple(name for name in patterns if (ALL_PATTERNS[name].onsets is not None) == (kind == "event"))


def _lookup(registry, field, name):
    if name not in registry:
        raise ValueError(f"`{field}` must be one of {sorted(registry)}, got {name!r}.")
    return registry[name]


def _gate(rng, times, num_samples):
    """Envelope of one burst after each onset: all bursts of a clip have the same attack and length."""
    gap = np.diff(times).min() if len(times) > 1 else 2.0
    length = int(np.clip(rng.uniform(0.3, 0.9) * gap, 0.03, 1.5) * dsp.SAMPLING_RATE)
    if rng.random() < 0.5:
        burst = dsp.decay(length, length / dsp.SAMPLING_RATE / 4, attack=0.005)
    else:
        burst = np.minimum(1, 6 * dsp.arch(length))
    return np.minimum(dsp.at_times(num_samples, times, [burst], np.ones(len(times))), 1.0)


def render_dry(source: str, pattern: str, rng: np.random.Generator, num_samples: int = dsp.CLIP_SAMPLES) -> np.ndarray:
    """A source placed in time by a pattern, without noise or room.

    Args:
        source: a name in `SOURCES` or `HELD_OUT_SOURCES`.
        pattern: a name in `PATTERNS` or `HELD_OUT_PATTERNS` that is compatible with the source.
        rng: all randomness comes from here.
        num_samples: length of the result, at 16 kHz.

    Returns:
        float32 array (num_samples,) with a peak of 1.

    Raises:
        ValueError: if a name is unknown or the two do not go together.
    """
    made, placed = _lookup(ALL_SOURCES, "source", source), _lookup(ALL_PATTERNS, "pattern", pattern)
    if pattern not in compatible_patterns(source, (pattern,)):
        raise ValueError(f"`pattern` must be one that {made.kind} sources such as {source!r} take, got {pattern!r}.")
    if placed.envelope is not None:
        waveform = made.render(rng, num_samples) * placed.envelope(rng, num_samples)
    else:
        times = placed.onsets(rng, num_samples / dsp.SAMPLING_RATE)
        if made.kind == "sustained":
            waveform = made.render(rng, num_samples) * _gate(rng, times, num_samples)
        else:
            events = [_unit_peak(made.render(rng, num_samples)) for _ in range(rng.integers(1, 4))]
            waveform = dsp.at_times(num_samples, times, events, dsp.decibels(rng.uniform(-8, 0, len(times))))
    return _unit_peak(waveform)


def _unit_peak(waveform):
    return (waveform / max(float(np.abs(waveform).max()), 1e-6)).astype(np.float32)


def _room_and_equalizer(waveform, rng):
    """Random spectral tilt, a broad peak or dip, band limits, and for two clips in five reverberation."""
    tilt, peak, center = rng.uniform(-2, 2), rng.uniform(-6, 6), dsp.log_uniform(rng, 150, 6000)
    low = dsp.log_uniform(rng, 20, 200) if rng.random() < 0.3 else 10
    high = dsp.log_uniform(rng, 3000, 8000) if rng.random() < 0.3 else 8000
    tail = _reverberation(rng) if rng.random() < 0.4 else None
    # Room for the tail, so that the circular convolution does not put the end of a clip in front of its start.
    padded = np.pad(waveform, (0, 0 if tail is None else len(tail)))

    def gain(frequencies):
        octaves = np.log2(np.maximum(frequencies, 30.0) / 1000.0)
        curve = dsp.decibels(tilt * octaves + peak * np.exp(-((octaves - np.log2(center / 1000)) ** 2)))
        curve = curve * dsp.band(low, high, 3)(frequencies)
        return curve if tail is None else curve * fft.rfft(tail, 2 * (len(frequencies) - 1))

    return dsp.apply_gain(padded, gain)[: len(waveform)]


def _reverberation(rng):
    """Impulse response: the direct sound, then noise that decays by 60 dB in 0.1 to 2 seconds."""
    decay_time = dsp.log_uniform(rng, 0.1, 2.0)
    length = int(min(decay_time, 1.2) * dsp.SAMPLING_RATE)
    response = dsp.noise(rng, length) * 10 ** (-3 * dsp.seconds(length) / decay_time)
    response *= dsp.decibels(rng.uniform(-16, 0)) / np.sqrt(np.sum(response**2))
    response[0] += 1.0
    return response


def _background(waveform, rng, snr):
    noise = dsp.colored_noise(rng, len(waveform), rng.uniform(-0.5, 2.2))
    signal_power = np.mean(waveform**2)
    return waveform + noise * np.sqrt(signal_power / np.mean(noise**2)) * dsp.decibels(-snr)


def _cut_and_pad(waveform, rng):
    """Real data sets hold whole clips, clips that end in digital silence, and short clips."""
    length = 80_000 if rng.random() < 0.5 else len(waveform)
    choice = rng.random()
    if choice < 0.7:
        return waveform[:length]
    kept = waveform[: int(rng.uniform(0.25, 0.95) * length)]
    if np.abs(kept).max() < 0.2 * np.abs(waveform).max():  # the event itself would be lost
        return waveform[:length]
    return np.pad(kept, (0, length - len(kept))) if choice < 0.85 else kept


def generate(
    source: str,
    pattern: str,
    rng: np.random.Generator,
    *,
    snr: tuple[float, float] = (5.0, 50.0),
    level: tuple[float, float] = (-20.0, -0.5),
    whole: bool = False,
    num_samples: int = dsp.CLIP_SAMPLES,
) -> Sound:
    """One clip of at most 5.12 s in a random acoustic setting.

    Args:
        source, pattern: names, see `render_dry`.
        rng: all randomness comes from here.
        snr: range of the signal-to-noise ratio of the background, in dB; a quarter of the clips have no background.
        level: range of the peak level in dB relative to full scale.
        whole: keep the whole clip instead of cutting and padding some.
        num_samples: length before that.

    Returns:
        the clip with its waveform, float32, at 16 kHz, within [-1, 1].

    Raises:
        ValueError: see `render_dry`.
    """
    waveform = render_dry(source, pattern, rng, num_samples)
    waveform = _unit_peak(_room_and_equalizer(waveform, rng))
    if rng.random() < 0.75:
        waveform = _background(waveform, rng, rng.uniform(*snr))
    waveform = _unit_peak(waveform) * np.float32(dsp.decibels(rng.uniform(*level)))
    return Sound(waveform if whole else _cut_and_pad(waveform, rng), source, pattern)


def generate_any(rng: np.random.Generator, **settings) -> Sound:
    """One clip of a random pretraining source and pattern; `settings` as in `generate`."""
    source = rng.choice(tuple(SOURCES)).item()
    pattern = rng.choice(compatible_patterns(source)).item()
    return generate(source, pattern, rng, **settings)

"""Generated sounds: many source types, each with a temporal pattern, in a random acoustic setting.

A clip is made in four steps, all driven by one `numpy.random.Generator`, so a seed always gives the same clip:

1. a *source* is rendered (a tone, a noise, a struck bar, a bark-like burst, ...);
2. a *pattern* places it in time (steady, fading, tremolo, one event, regular events, ...);
3. equalisation, reverberation and background noise are added;
4. the clip gets its length and its level.

Sources and patterns live in registries by name. Those marked as held out never appear in pretraining; they make the
tasks on which a pretrained backbone is judged.

Waveforms are mono, float32, sampled at 16 kHz.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import fft, signal


SAMPLING_RATE = 16_000
CLIP_SAMPLES = 81_920  # 5.12 s: 512 frames of 10 ms
CLIP_SECONDS = CLIP_SAMPLES / SAMPLING_RATE


class Source(NamedTuple):
    """How one source type is rendered.

    `kind` says how the source meets a temporal pattern: "sustained" sources last the whole clip and are shaped by an
    envelope, "event" sources are short and placed at onsets, "paced" sources have a rhythm of their own and are only
    faded or modulated.
    """

    render: Callable[[np.random.Generator, int], np.ndarray]
    kind: str
    held_out: bool


class Pattern(NamedTuple):
    """How one temporal pattern is made: `envelope(rng, num_samples)` for gradual patterns, `onsets(rng, seconds)` for
    rhythmic ones. Exactly one of the two is set."""

    envelope: Callable[[np.random.Generator, int], np.ndarray] | None
    onsets: Callable[[np.random.Generator, float], np.ndarray] | None
    held_out: bool


class Sound(NamedTuple):
    """One generated clip and what it is made of."""

    waveform: np.ndarray
    source: str
    pattern: str


_SOURCES: dict[str, Source] = {}
_PATTERNS: dict[str, Pattern] = {}


def _source(kind: str, held_out: bool = False):
    def register(function):
        _SOURCES[function.__name__.removeprefix("_")] = Source(function, kind, held_out)
        return function

    return register


def _envelope(function=None, *, held_out: bool = False):
    def register(function):
        _PATTERNS[function.__name__.removeprefix("_")] = Pattern(function, None, held_out)
        return function

    return register if function is None else register(function)


def _onsets(function=None, *, held_out: bool = False):
    def register(function):
        _PATTERNS[function.__name__.removeprefix("_")] = Pattern(None, function, held_out)
        return function

    return register if function is None else register(function)


# --- building blocks ------------------------------------------------------------------------------------------------


def _log_uniform(rng, low, high, size=None):
    return np.exp(rng.uniform(np.log(low), np.log(high), size))


def _decibels(value):
    return 10.0 ** (value / 20.0)


def _seconds(num_samples):
    return np.arange(num_samples, dtype=np.float32) / SAMPLING_RATE


def _noise(rng, num_samples):
    return rng.standard_normal(num_samples, dtype=np.float32)


def _phase(frequency, num_samples=None):
    """Cycles passed, (num_samples,), of an oscillator of constant or time-varying frequency in Hz."""
    if np.ndim(frequency) == 0:
        return np.arange(num_samples) * (frequency / SAMPLING_RATE)
    return np.cumsum(frequency, dtype=np.float64) / SAMPLING_RATE


def _sine(frequency, num_samples=None, start=0.0):
    cycles = (_phase(frequency, num_samples) + start) % 1.0
    return np.sin((2 * np.pi * cycles).astype(np.float32))


def _wavetable(phase, amplitudes, rng):
    """Sum of harmonics with the given amplitudes and random phases, read from a table of one period."""
    spectrum = np.zeros(2049, dtype=np.complex64)
    spectrum[1 : len(amplitudes) + 1] = amplitudes * np.exp(2j * np.pi * rng.random(len(amplitudes)))
    table = fft.irfft(spectrum, 4096).astype(np.float32)
    return table[((phase % 1.0) * 4096).astype(np.int64) % 4096]


def _harmonic_amplitudes(frequency, slope, limit=60):
    """Amplitudes k**-slope of the harmonics that stay below 7.8 kHz."""
    count = int(np.clip(7800 / frequency, 1, limit))
    return np.arange(1, count + 1) ** -float(slope)


def _smooth_random(rng, num_samples, rate, low=-1.0, high=1.0):
    """A random curve in [low, high] that takes about `rate` new values a second."""
    count = max(4, int(num_samples / SAMPLING_RATE * rate) + 2)
    knots = rng.uniform(low, high, count)
    return np.interp(np.linspace(0, count - 1, num_samples), np.arange(count), knots).astype(np.float32)


def _filter(waveform, gain):
    """Apply `gain(frequencies in Hz)` as a zero-phase filter."""
    length = fft.next_fast_len(len(waveform), real=True)
    spectrum = fft.rfft(waveform.astype(np.float32, copy=False), length)
    frequencies = np.fft.rfftfreq(length, 1 / SAMPLING_RATE).astype(np.float32)
    return fft.irfft(spectrum * gain(frequencies), length)[: len(waveform)]


def _band(low, high, steepness=4):
    """Gain of a band-pass filter; `steepness` is the Butterworth order of both edges."""

    def gain(frequencies):
        frequencies = np.maximum(frequencies, 1.0)
        return 1 / np.sqrt(
            (1 + (low / frequencies) ** (2 * steepness)) * (1 + (frequencies / high) ** (2 * steepness))
        )

    return gain


def _resonances(centers, bandwidths, amplitudes=None):
    """Gain of resonances side by side, all in Hz."""
    amplitudes = np.ones(len(centers)) if amplitudes is None else amplitudes

    def gain(frequencies):
        total = np.zeros_like(frequencies)
        for center, bandwidth, amplitude in zip(centers, bandwidths, amplitudes):
            total += amplitude / (1 + ((frequencies - center) / (0.5 * bandwidth)) ** 2)
        return total

    return gain


def _colored_noise(rng, num_samples, slope):
    """Noise whose power falls with frequency**-slope."""
    return _filter(_noise(rng, num_samples), lambda frequencies: np.maximum(frequencies, 30.0) ** (-slope / 2))


def _band_noise(rng, num_samples, low, high, steepness=4):
    return _filter(_noise(rng, num_samples), _band(low, high, steepness))


def _modes(rng, num_samples, frequencies, decays, amplitudes):
    """Damped sines: frequencies in Hz, decays as time constants in seconds."""
    time = _seconds(num_samples)
    waveform = np.zeros(num_samples, dtype=np.float32)
    for frequency, decay, amplitude in zip(frequencies, decays, amplitudes):
        if frequency < 7900:
            waveform += amplitude * np.exp(-time / decay) * np.sin(2 * np.pi * (frequency * time + rng.random()))
    return waveform


def _decay(num_samples, time_constant, attack=0.002):
    time = _seconds(num_samples)
    return np.minimum(time / attack, 1.0) * np.exp(-time / time_constant)


def _arch(num_samples, power=1.0):
    """An envelope that rises from zero and falls back to zero."""
    return np.maximum(np.sin(np.linspace(0, np.pi, num_samples, dtype=np.float32)), 0) ** power


def _samples(rng, low, high):
    """A random duration between two times in seconds, as a number of samples."""
    return int(_log_uniform(rng, low, high) * SAMPLING_RATE)


def _sprinkle(rng, num_samples, rate, kernels, amplitude_spread=1.0):
    """Copies of the kernels at random times, `rate` a second on average, with log-normal amplitudes."""
    waveform = np.zeros(num_samples, dtype=np.float32)
    for kernel in kernels:
        count = max(1, rng.poisson(rate * num_samples / SAMPLING_RATE / len(kernels)))
        impulses = np.zeros(num_samples, dtype=np.float32)
        amplitudes = np.exp(amplitude_spread * rng.standard_normal(count)) * rng.choice([-1, 1], count)
        np.add.at(impulses, rng.integers(0, num_samples, count), amplitudes.astype(np.float32))
        waveform += signal.oaconvolve(impulses, kernel.astype(np.float32))[:num_samples]
    return waveform


def _at_times(num_samples, times, events, amplitudes):
    """The events, cycled through, placed at the times in seconds."""
    waveform = np.zeros(num_samples, dtype=np.float32)
    for index, (time, amplitude) in enumerate(zip(times, amplitudes)):
        start = int(time * SAMPLING_RATE)
        event = events[index % len(events)][: max(0, num_samples - start)]
        waveform[start : start + len(event)] += amplitude * event
    return waveform


def _click(rng, low=1500, high=6000):
    return _modes(rng, 480, [_log_uniform(rng, low, high)], [_log_uniform(rng, 0.0005, 0.004)], [1.0])


def _formants(rng):
    """Centers and bandwidths, in Hz, of the three resonances of a vowel-like sound."""
    size = rng.uniform(0.85, 1.5)
    centers = size * np.array([rng.uniform(280, 850), rng.uniform(900, 2200), rng.uniform(2400, 3200)])
    return centers, rng.uniform(60, 180, 3) * np.array([1.0, 1.4, 2.0])


def _voice(rng, fundamental, slope=1.0):
    """Glottis-like harmonics that follow a fundamental frequency curve in Hz."""
    return _wavetable(_phase(fundamental), _harmonic_amplitudes(np.max(fundamental), slope), rng)


def _glide(rng, num_samples, *points):
    """A frequency curve through the given points, evenly spaced, straight on a logarithmic scale."""
    positions = np.linspace(0, num_samples - 1, len(points))
    return np.exp(np.interp(np.arange(num_samples), positions, np.log(points)))


def _sweep_position(rng, num_samples, shortest=0.25, longest=5.0):
    """Position in [0, 1) within sweeps that repeat with a random period."""
    period = _log_uniform(rng, shortest, longest)
    return ((_seconds(num_samples) / period + rng.random()) % 1.0).astype(np.float32)


# --- sustained tones ------------------------------------------------------------------------------------------------


@_source("sustained")
def _pure_tone(rng, num_samples):
    return _sine(_log_uniform(rng, 80, 6000), num_samples)


@_source("sustained")
def _tone_pair(rng, num_samples):
    frequency = _log_uniform(rng, 100, 2500)
    return _sine(frequency, num_samples) + _sine(frequency * rng.uniform(1.2, 3.0), num_samples)


@_source("sustained")
def _beating_tones(rng, num_samples):
    frequency = _log_uniform(rng, 120, 4000)
    return _sine(frequency, num_samples) + _sine(frequency + rng.uniform(2, 15), num_samples)


@_source("sustained")
def _harmonic_tone(rng, num_samples):
    frequency = _log_uniform(rng, 60, 1200)
    return _wavetable(_phase(frequency, num_samples), _harmonic_amplitudes(frequency, rng.uniform(1.2, 2.5)), rng)


@_source("sustained")
def _bright_harmonic_tone(rng, num_samples):
    frequency = _log_uniform(rng, 60, 1000)
    return _wavetable(_phase(frequency, num_samples), _harmonic_amplitudes(frequency, rng.uniform(0.0, 0.7)), rng)


@_source("sustained")
def _odd_harmonic_tone(rng, num_samples):
    frequency = _log_uniform(rng, 60, 1000)
    amplitudes = _harmonic_amplitudes(frequency, rng.uniform(0.5, 1.5))
    amplitudes[1::2] = 0
    return _wavetable(_phase(frequency, num_samples), amplitudes, rng)


@_source("sustained")
def _inharmonic_tone(rng, num_samples):
    frequencies = _log_uniform(rng, 100, 6000, rng.integers(4, 10))
    return sum(rng.uniform(0.2, 1) * _sine(frequency, num_samples) for frequency in frequencies)


@_source("sustained")
def _chord(rng, num_samples):
    root = _log_uniform(rng, 100, 500)
    steps = rng.choice([[0, 4, 7], [0, 3, 7], [0, 5, 9], [0, 3, 6]])
    notes = root * 2 ** (steps / 12)
    return sum(_wavetable(_phase(note, num_samples), _harmonic_amplitudes(note, 1.5), rng) for note in notes)


@_source("sustained")
def _vibrato_tone(rng, num_samples):
    frequency, depth = _log_uniform(rng, 150, 1200), rng.uniform(0.02, 0.08)
    curve = frequency * (1 + depth * _sine(rng.uniform(3, 9), num_samples))
    return _wavetable(_phase(curve), _harmonic_amplitudes(frequency * 1.1, rng.uniform(1, 2)), rng)


@_source("sustained")
def _frequency_modulated_tone(rng, num_samples):
    carrier, index = _log_uniform(rng, 150, 2000), rng.uniform(1, 8)
    modulator = carrier * rng.uniform(0.1, 1.7)
    phase = _phase(carrier, num_samples) + index / (2 * np.pi) * _sine(modulator, num_samples)
    return np.sin(2 * np.pi * (phase % 1.0)).astype(np.float32)


@_source("sustained")
def _rising_sweep(rng, num_samples):
    low, octaves = _log_uniform(rng, 100, 1500), rng.uniform(0.7, 2.3)
    curve = low * 2 ** (octaves * _sweep_position(rng, num_samples))
    return _wavetable(_phase(curve), _harmonic_amplitudes(low * 2**octaves, rng.uniform(1, 4)), rng)


@_source("sustained")
def _falling_sweep(rng, num_samples):
    low, octaves = _log_uniform(rng, 100, 1500), rng.uniform(0.7, 2.3)
    curve = low * 2 ** (octaves * (1 - _sweep_position(rng, num_samples)))
    return _wavetable(_phase(curve), _harmonic_amplitudes(low * 2**octaves, rng.uniform(1, 4)), rng)


@_source("sustained")
def _siren(rng, num_samples):
    center, octaves = _log_uniform(rng, 400, 1600), rng.uniform(0.3, 0.8)
    curve = center * 2 ** (octaves * _sine(_log_uniform(rng, 0.2, 3), num_samples, rng.random()))
    return _wavetable(_phase(curve), _harmonic_amplitudes(center * 2, rng.uniform(0.8, 2.5)), rng)


@_source("paced")
def _two_tone_alarm(rng, num_samples):
    low, ratio, rate = _log_uniform(rng, 400, 2500), rng.uniform(1.15, 2.0), _log_uniform(rng, 1, 8)
    curve = np.where((_seconds(num_samples) * rate + rng.random()) % 1 < 0.5, low, low * ratio)
    return _wavetable(_phase(curve), _harmonic_amplitudes(low * ratio, rng.uniform(0.8, 3)), rng)


@_source("paced")
def _melody(rng, num_samples):
    steps = rng.integers(0, 13, 64)
    note = (_seconds(num_samples) * _log_uniform(rng, 2, 8)).astype(np.int64)
    root = _log_uniform(rng, 150, 900)
    return _wavetable(_phase(root * 2 ** (steps[note % 64] / 12)), _harmonic_amplitudes(2 * root, 1.5), rng)


# --- voices and animals, sustained ----------------------------------------------------------------------------------


@_source("sustained")
def _vowel(rng, num_samples):
    curve = _log_uniform(rng, 90, 350) * (1 + 0.03 * _smooth_random(rng, num_samples, 6))
    return _filter(_voice(rng, curve), _resonances(*_formants(rng)))


@_source("sustained")
def _babble(rng, num_samples):
    curve = _log_uniform(rng, 90, 300) * 2 ** (0.35 * _smooth_random(rng, num_samples, 4))
    voice, mix = _voice(rng, curve), _smooth_random(rng, num_samples, 5, 0, 1)
    vowels = [_filter(voice, _resonances(*_formants(rng))) for _ in range(2)]
    return mix * vowels[0] + (1 - mix) * vowels[1]


@_source("sustained")
def _whisper(rng, num_samples):
    return _filter(_noise(rng, num_samples), _resonances(*_formants(rng)))


@_source("sustained")
def _insect_buzz(rng, num_samples):
    curve = _log_uniform(rng, 120, 500) * 2 ** (0.2 * _smooth_random(rng, num_samples, 8))
    buzz = _voice(rng, curve, slope=rng.uniform(0.2, 0.8))
    return _filter(buzz, _band(*np.array([0.7, 1.8]) * _log_uniform(rng, 500, 3000), 2))


@_source("sustained")
def _cicada(rng, num_samples):
    center = _log_uniform(rng, 2500, 6500)
    modulation = np.maximum(_sine(_log_uniform(rng, 30, 200), num_samples), 0) ** 2
    return modulation * _band_noise(rng, num_samples, center * 0.85, center * 1.15)


# --- machines -------------------------------------------------------------------------------------------------------


@_source("sustained")
def _engine(rng, num_samples):
    curve = _log_uniform(rng, 18, 90) * (1 + 0.06 * _smooth_random(rng, num_samples, 15))
    phase = _phase(curve)
    pulses = np.exp(-((phase % 1.0) * rng.uniform(4, 15))).astype(np.float32)
    rough = pulses * (1 + rng.uniform(0.2, 1) * _noise(rng, num_samples))
    return _filter(rough, _resonances(_log_uniform(rng, 60, 2500, 4), rng.uniform(80, 500, 4)))


@_source("sustained")
def _revving_engine(rng, num_samples):
    rate = rng.uniform(0.3, 1.5)
    curve = _log_uniform(rng, 50, 130) * 2 ** (0.6 * _smooth_random(rng, num_samples, rate * 3))
    voice = _voice(rng, curve, rng.uniform(0.2, 0.8))
    rough = voice * (1 + 0.5 * _noise(rng, num_samples))
    return _filter(rough, _resonances(_log_uniform(rng, 200, 4000, 4), rng.uniform(200, 900, 4)))


@_source("sustained")
def _electric_motor(rng, num_samples):
    curve = _log_uniform(rng, 200, 1500) * (1 + 0.01 * _smooth_random(rng, num_samples, 3))
    whine = _voice(rng, curve, rng.uniform(0.5, 1.2))
    noise = _band_noise(rng, num_samples, 300, 6000, 1)
    return whine / whine.std() + rng.uniform(0.2, 0.8) * noise / noise.std()


@_source("sustained")
def _mains_hum(rng, num_samples):
    amplitudes = rng.exponential(1.0, 20) * np.arange(1, 21) ** -0.7
    return _wavetable(_phase(rng.choice([50.0, 60.0, 100.0, 120.0]), num_samples), amplitudes, rng)


@_source("sustained")
def _rotor(rng, num_samples):
    phase = _phase(_log_uniform(rng, 7, 28) * (1 + 0.03 * _smooth_random(rng, num_samples, 2)))
    chop = np.exp(-rng.uniform(2, 8) * (phase % 1.0)).astype(np.float32)
    return chop * _colored_noise(rng, num_samples, rng.uniform(0.5, 2.0))


@_source("sustained")
def _ratchet(rng, num_samples):
    phase = _phase(_log_uniform(rng, 10, 45) * (1 + 0.1 * _smooth_random(rng, num_samples, 3)))
    impulses = np.diff(np.floor(phase), prepend=0).astype(np.float32)
    return signal.oaconvolve(impulses, _click(rng, 800, 5000))[:num_samples]


@_source("sustained")
def _pulse_buzz(rng, num_samples):
    frequency = _log_uniform(rng, 30, 160)
    pulses = _wavetable(_phase(frequency, num_samples), np.ones(int(7800 / frequency)), rng)
    gate = _phase(frequency, num_samples) % 1.0 < 0.15
    return pulses * 0.3 + gate.astype(np.float32) * _band_noise(rng, num_samples, 500, 6000, 1)


# --- noises ---------------------------------------------------------------------------------------------------------


@_source("sustained")
def _white_noise(rng, num_samples):
    return _noise(rng, num_samples)


@_source("sustained")
def _pink_noise(rng, num_samples):
    return _colored_noise(rng, num_samples, rng.uniform(0.8, 1.2))


@_source("sustained")
def _brown_noise(rng, num_samples):
    return _colored_noise(rng, num_samples, rng.uniform(1.8, 2.4))


@_source("sustained")
def _hiss(rng, num_samples):
    return _filter(_noise(rng, num_samples), _band(_log_uniform(rng, 2500, 5000), 8000, 2))


@_source("sustained")
def _narrow_band_noise(rng, num_samples):
    center = _log_uniform(rng, 200, 5000)
    return _band_noise(rng, num_samples, center * 0.93, center * 1.07)


@_source("sustained")
def _wide_band_noise(rng, num_samples):
    center = _log_uniform(rng, 400, 3000)
    return _band_noise(rng, num_samples, center / 1.7, center * 1.7)


@_source("sustained")
def _rising_noise(rng, num_samples):
    carrier = _sine(_log_uniform(rng, 300, 1500) * 2 ** (2 * _sweep_position(rng, num_samples)))
    return carrier * _band_noise(rng, num_samples, 1, _log_uniform(rng, 60, 300))


@_source("sustained")
def _falling_noise(rng, num_samples):
    carrier = _sine(_log_uniform(rng, 300, 1500) * 2 ** (2 - 2 * _sweep_position(rng, num_samples)))
    return carrier * _band_noise(rng, num_samples, 1, _log_uniform(rng, 60, 300))


@_source("sustained")
def _comb_noise(rng, num_samples):
    delay, feedback = 1 / _log_uniform(rng, 100, 1200), rng.uniform(0.8, 0.97)

    def gain(frequencies):
        return 1 / np.abs(1 - feedback * np.exp(-2j * np.pi * frequencies * delay))

    return _filter(_noise(rng, num_samples), gain)


@_source("sustained")
def _resonant_noise(rng, num_samples):
    centers = _log_uniform(rng, 150, 6000, rng.integers(2, 6))
    return _filter(_noise(rng, num_samples), _resonances(centers, centers * rng.uniform(0.01, 0.08, len(centers))))


@_source("sustained")
def _wind(rng, num_samples):
    gust = _smooth_random(rng, num_samples, 1.5, 0, 1)
    howl = _sine(_log_uniform(rng, 250, 700) * 2**gust) * _band_noise(rng, num_samples, 1, 80)
    rumble = _colored_noise(rng, num_samples, 1.8)
    return gust**1.5 * (rumble / rumble.std() + rng.uniform(0, 1.5) * howl / howl.std()) + 0.1 * rumble / rumble.std()


@_source("paced")
def _sea_waves(rng, num_samples):
    position = _sweep_position(rng, num_samples, 2.0, 6.0)
    swell = np.where(position < 0.4, position / 0.4, np.exp(-4 * (position - 0.4))) ** 1.5
    return (0.15 + swell) * _colored_noise(rng, num_samples, rng.uniform(0.5, 1.5))


@_source("sustained")
def _rain(rng, num_samples):
    drops = _sprinkle(rng, num_samples, _log_uniform(rng, 300, 3000), [_click(rng), _click(rng, 600, 3000)], 0.8)
    wash = _colored_noise(rng, num_samples, rng.uniform(-0.3, 0.6))
    return drops / drops.std() + rng.uniform(0.2, 1.2) * wash / wash.std()


@_source("sustained")
def _frying(rng, num_samples):
    kernels = [_click(rng, 2500, 7000) for _ in range(3)]
    return _sprinkle(rng, num_samples, _log_uniform(rng, 60, 250), kernels, 0.9)


@_source("sustained")
def _crackle(rng, num_samples):
    pops = _sprinkle(rng, num_samples, _log_uniform(rng, 4, 35), [_click(rng, 500, 5000) for _ in range(4)], 1.2)
    bed = _colored_noise(rng, num_samples, 1.5)
    return pops / pops.std() + rng.uniform(0.0, 0.6) * bed / bed.std()


@_source("sustained")
def _vinyl_dust(rng, num_samples):
    impulses = _sprinkle(rng, num_samples, _log_uniform(rng, 10, 80), [np.ones(1)], 1.0)
    return impulses / impulses.std() + 0.3 * _band_noise(rng, num_samples, 100, 4000, 1)


@_source("sustained")
def _bubbling(rng, num_samples):
    bubbles = []
    for _ in range(4):
        length = _samples(rng, 0.02, 0.1)
        bubbles.append(
            _sine(_glide(rng, length, *(_log_uniform(rng, 300, 1500) * np.array([1, 1.7])))) * _arch(length)
        )
    return _sprinkle(rng, num_samples, _log_uniform(rng, 8, 60), bubbles, 0.6)


@_source("sustained")
def _tone_grains(rng, num_samples):
    grains = []
    for _ in range(5):
        length = _samples(rng, 0.02, 0.12)
        grains.append(_sine(_log_uniform(rng, 300, 5000), length) * _arch(length))
    return _sprinkle(rng, num_samples, _log_uniform(rng, 10, 60), grains, 0.4)


@_source("sustained")
def _gravel(rng, num_samples):
    grains = [_noise(rng, 1600) * _decay(1600, _log_uniform(rng, 0.004, 0.03)) for _ in range(3)]
    crunch = _sprinkle(rng, num_samples, _log_uniform(rng, 15, 80), grains, 0.7)
    return _filter(crunch, _band(_log_uniform(rng, 200, 1500), 7000, 1))


@_source("sustained")
def _scraping(rng, num_samples):
    roughness = np.abs(_smooth_random(rng, num_samples, _log_uniform(rng, 30, 150))) ** 2
    centers = _log_uniform(rng, 800, 6000, 4)
    return _filter(roughness * _noise(rng, num_samples), _resonances(centers, centers * 0.15))


@_source("paced")
def _sawing(rng, num_samples):
    stroke = _sine(_log_uniform(rng, 0.6, 3), num_samples, rng.random())
    teeth = 1 + _sine(_log_uniform(rng, 60, 250) * np.abs(stroke) + 1)
    center = _log_uniform(rng, 1000, 3500)
    tilt = np.where(stroke > 0, 1.0, rng.uniform(0.3, 0.9))
    return np.abs(stroke) * tilt * teeth * _band_noise(rng, num_samples, center / 2, center * 2, 2)


@_source("sustained")
def _water_stream(rng, num_samples):
    blips = []
    for _ in range(6):
        length = _samples(rng, 0.004, 0.03)
        blips.append(_sine(_log_uniform(rng, 500, 4000), length) * _arch(length))
    stream = _sprinkle(rng, num_samples, _log_uniform(rng, 200, 900), blips, 0.6)
    wash = _band_noise(rng, num_samples, 400, 5000, 1)
    return stream / stream.std() + rng.uniform(0.1, 0.6) * wash / wash.std()


# --- sounds with a rhythm of their own ------------------------------------------------------------------------------


@_source("paced")
def _regular_clicks(rng, num_samples):
    times = np.arange(rng.uniform(0, 0.5), num_samples / SAMPLING_RATE, 1 / _log_uniform(rng, 1.5, 9))
    return _at_times(num_samples, times, [_click(rng, 400, 6000)], np.ones(len(times)))


@_source("paced")
def _irregular_clicks(rng, num_samples):
    times = rng.uniform(0, num_samples / SAMPLING_RATE, rng.integers(5, 40))
    return _at_times(num_samples, times, [_click(rng, 400, 6000)], rng.uniform(0.3, 1, len(times)))


@_source("paced")
def _clock_ticks(rng, num_samples):
    times = np.arange(rng.uniform(0, 0.5), num_samples / SAMPLING_RATE, 1 / rng.choice([1, 2, 3, 4, 5]))
    ticks = [_click(rng, 1500, 5000) + rng.uniform(0.2, 0.6) * _click(rng, 400, 1500) for _ in range(2)]
    return _at_times(num_samples, times, ticks, np.ones(len(times)))


@_source("paced")
def _bouncing_ball(rng, num_samples):
    gaps = rng.uniform(0.25, 0.7) * rng.uniform(0.75, 0.92) ** np.arange(40)
    times = rng.uniform(0, 1.0) + np.concatenate([[0], np.cumsum(gaps)])
    knock = _modes(rng, 3200, _log_uniform(rng, 120, 2500, 3), _log_uniform(rng, 0.005, 0.04, 3), [1, 0.6, 0.4])
    return _at_times(num_samples, times, [knock], rng.uniform(0.85, 0.97) ** np.arange(41))


@_source("paced")
def _breathing(rng, num_samples):
    position = _sweep_position(rng, num_samples, 1.0, 3.5)
    breath = np.where(position < 0.4, np.sin(np.pi * position / 0.4), 0) ** 2
    breath_out = np.where((position > 0.5) & (position < 0.9), np.sin(np.pi * (position - 0.5) / 0.4), 0) ** 2
    first, second = (_filter(_noise(rng, num_samples), _resonances(*_formants(rng))) for _ in range(2))
    return breath * first / first.std() + breath_out * second / second.std()


@_source("paced")
def _heartbeat(rng, num_samples):
    beats = np.arange(rng.uniform(0, 0.6), num_samples / SAMPLING_RATE, 60 / rng.uniform(50, 150))
    times = np.sort(np.concatenate([beats, beats + rng.uniform(0.12, 0.22)]))
    thumps = [_drum(rng, 4800), 0.6 * _drum(rng, 4800)]
    return _at_times(num_samples, times, thumps, np.ones(len(times)))


# --- events ---------------------------------------------------------------------------------------------------------


@_source("event")
def _plucked_string(rng, num_samples):
    period = int(SAMPLING_RATE / _log_uniform(rng, 80, 800))
    length = min(num_samples, _samples(rng, 0.4, 2.0))
    burst = np.zeros(length, dtype=np.float32)
    burst[:period] = rng.uniform(-1, 1, min(period, length))
    denominator = np.zeros(period + 2, dtype=np.float32)
    denominator[0], denominator[-2], denominator[-1] = 1.0, -0.5 * 0.996, -0.5 * 0.996
    return signal.lfilter(np.ones(1, dtype=np.float32), denominator, burst)


@_source("event")
def _struck_bar(rng, num_samples):
    ratios = np.array([1.0, 2.756, 5.404, 8.933])
    return _modes(
        rng,
        _samples(rng, 0.3, 1.2),
        _log_uniform(rng, 200, 1500) * ratios,
        _log_uniform(rng, 0.08, 0.4) / ratios**0.7,
        [1, 0.7, 0.4, 0.2],
    )


@_source("event")
def _bell(rng, num_samples):
    ratios = np.array([0.5, 1.0, 1.2, 1.5, 2.0, 2.7, 3.3, 4.2]) * rng.uniform(0.98, 1.02, 8)
    return _modes(
        rng,
        _samples(rng, 1.0, 3.0),
        _log_uniform(rng, 250, 1500) * ratios,
        rng.uniform(0.3, 1.2) / ratios**0.5,
        rng.uniform(0.3, 1, 8),
    )


@_source("event")
def _drum(rng, num_samples):
    length = _samples(rng, 0.15, 0.6)
    low = _log_uniform(rng, 45, 160)
    curve = low * (1 + rng.uniform(0.5, 3) * np.exp(-_seconds(length) / 0.03))
    return _sine(curve) * _decay(length, rng.uniform(0.05, 0.2)) + 0.1 * _noise(rng, length) * _decay(length, 0.01)


@_source("event")
def _snare(rng, num_samples):
    length = _samples(rng, 0.15, 0.4)
    rattle = _band_noise(rng, length, 1000, 7500, 1) * _decay(length, rng.uniform(0.03, 0.12))
    return rattle + 0.7 * _sine(rng.uniform(150, 280), length) * _decay(length, 0.05)


@_source("event")
def _wood_block(rng, num_samples):
    return _modes(rng, 3200, _log_uniform(rng, 400, 2500) * np.array([1, 2.3]), rng.uniform(0.01, 0.04, 2), [1, 0.6])


@_source("event")
def _glass_clink(rng, num_samples):
    return _modes(
        rng,
        _samples(rng, 0.2, 1.0),
        _log_uniform(rng, 1800, 7500, 6),
        _log_uniform(rng, 0.03, 0.3, 6),
        rng.uniform(0.3, 1, 6),
    )


@_source("event")
def _metal_clang(rng, num_samples):
    clang = _modes(
        rng,
        _samples(rng, 0.3, 1.5),
        _log_uniform(rng, 200, 7000, 16),
        _log_uniform(rng, 0.05, 0.5, 16),
        rng.uniform(0.2, 1, 16),
    )
    clang[:160] += 3 * _noise(rng, 160)
    return clang


@_source("event")
def _water_drop(rng, num_samples):
    length = _samples(rng, 0.05, 0.2)
    start = _log_uniform(rng, 500, 2000)
    return _sine(_glide(rng, length, start, start * rng.uniform(1.3, 2.5))) * _decay(
        length, length / SAMPLING_RATE / 4
    )


@_source("event")
def _clap(rng, num_samples):
    times = np.cumsum(rng.uniform(0.004, 0.015, 4))
    slaps = [_band_noise(rng, 2400, 700, 4000, 2) * _decay(2400, 0.008, 0.0005) for _ in range(3)]
    tail = _band_noise(rng, 2400, 700, 4000, 2) * _decay(2400, 0.04, 0.0005)
    return _at_times(3600, times, [*slaps, tail], np.ones(4))


@_source("event")
def _door_knock(rng, num_samples):
    return _modes(rng, 2400, _log_uniform(rng, 90, 900, 4), _log_uniform(rng, 0.01, 0.05, 4), [1, 0.7, 0.5, 0.3])


@_source("event")
def _footstep(rng, num_samples):
    heel, toe = (_band_noise(rng, 2400, 60, _log_uniform(rng, 400, 2500), 1) * _decay(2400, 0.02) for _ in range(2))
    return _at_times(4800, [0, rng.uniform(0.05, 0.12)], [heel, toe], [1, rng.uniform(0.3, 0.8)])


@_source("event")
def _explosion(rng, num_samples):
    length = _samples(rng, 0.6, 2.5)
    blast = _colored_noise(rng, length, rng.uniform(1.0, 2.2)) * _decay(length, length / SAMPLING_RATE / 5)
    return np.tanh(3 * blast / blast.std())


@_source("event")
def _beep(rng, num_samples):
    length = _samples(rng, 0.05, 0.5)
    frequency = _log_uniform(rng, 400, 4000)
    tone = _wavetable(_phase(frequency, length), _harmonic_amplitudes(frequency, rng.uniform(1, 4)), rng)
    return tone * np.minimum(1, 8 * _arch(length))


@_source("event")
def _zap(rng, num_samples):
    length = _samples(rng, 0.05, 0.35)
    curve = _glide(rng, length, _log_uniform(rng, 2500, 7000), _log_uniform(rng, 80, 500))
    return _sine(curve) * _decay(length, length / SAMPLING_RATE / 2)


@_source("event")
def _whistle(rng, num_samples):
    length = _samples(rng, 0.2, 1.0)
    start = _log_uniform(rng, 700, 2500)
    curve = _glide(rng, length, start, start * rng.uniform(0.7, 1.8), start * rng.uniform(0.7, 1.8))
    return (_sine(curve) + 0.05 * _noise(rng, length)) * _arch(length, 0.5)


@_source("event")
def _bird_chirp(rng, num_samples):
    length = _samples(rng, 0.04, 0.25)
    start = _log_uniform(rng, 2000, 5500)
    curve = _glide(rng, length, *(start * 2 ** rng.uniform(-0.6, 0.6, 3)))
    return _sine(np.minimum(curve, 7500)) * _arch(length)


@_source("event")
def _bird_trill(rng, num_samples):
    length = _samples(rng, 0.3, 1.2)
    curve = _log_uniform(rng, 2000, 5000) * 2 ** (rng.uniform(0.1, 0.5) * _sine(rng.uniform(12, 45), length))
    return _sine(curve) * _arch(length, 0.5)


@_source("event")
def _bark(rng, num_samples):
    length = _samples(rng, 0.1, 0.4)
    start = _log_uniform(rng, 180, 700)
    voice = _voice(rng, _glide(rng, length, start, start * rng.uniform(1.1, 1.5), start * rng.uniform(0.5, 0.8)), 0.5)
    rough = voice / voice.std() * (1 + 0.4 * _noise(rng, length)) + 0.5 * _noise(rng, length)
    return _filter(rough, _resonances(*_formants(rng))) * _arch(length, 0.7)


@_source("event")
def _growl(rng, num_samples):
    length = _samples(rng, 0.4, 1.5)
    curve = _log_uniform(rng, 40, 120) * (1 + 0.15 * _smooth_random(rng, length, 30))
    voice = _voice(rng, curve, 0.3) * (1 + 0.5 * _noise(rng, length))
    return _filter(voice, _resonances(*_formants(rng))) * _arch(length, 0.5)


@_source("event")
def _meow(rng, num_samples):
    length = _samples(rng, 0.4, 1.2)
    start = _log_uniform(rng, 300, 700)
    curve = _glide(rng, length, start, start * rng.uniform(1.3, 1.8), start * rng.uniform(0.8, 1.1))
    voice, mix = _voice(rng, curve, 0.8), np.linspace(0, 1, length, dtype=np.float32)
    closed, opened = (_filter(voice, _resonances(*_formants(rng))) for _ in range(2))
    return ((1 - mix) * closed + mix * opened) * _arch(length, 0.7)


@_source("event")
def _wail(rng, num_samples):
    length = _samples(rng, 0.5, 1.6)
    start = _log_uniform(rng, 300, 650)
    curve = _glide(rng, length, start * 0.8, start * rng.uniform(1.1, 1.4), start, start * 0.75)
    curve = curve * (1 + 0.03 * _sine(rng.uniform(4, 9), length))
    return _filter(_voice(rng, curve, 0.4), _resonances(*_formants(rng))) * _arch(length, 0.4)


@_source("event")
def _crow(rng, num_samples):
    length = _samples(rng, 0.6, 1.8)
    start = _log_uniform(rng, 350, 800)
    points = start * np.array([0.8, 1.0, rng.uniform(0.9, 1.2), rng.uniform(1.2, 1.6), rng.uniform(0.9, 1.2), 0.6])
    voice = _voice(rng, _glide(rng, length, *points), 0.3)
    rasp = 1 + rng.uniform(0.2, 0.8) * _sine(rng.uniform(40, 110), length)
    syllables = np.maximum(0.15, _smooth_random(rng, length, 6, 0, 1))
    return _filter(voice * rasp * syllables, _resonances(*_formants(rng))) * _arch(length, 0.4)


@_source("event")
def _cough(rng, num_samples):
    length = _samples(rng, 0.12, 0.4)
    burst = _filter(_noise(rng, length), _resonances(*_formants(rng))) * _decay(length, rng.uniform(0.03, 0.1))
    voice = _filter(_voice(rng, np.full(length, rng.uniform(100, 250))), _resonances(*_formants(rng)))
    return burst / burst.std() + rng.uniform(0.1, 0.6) * voice / voice.std() * _arch(length)


@_source("event")
def _sneeze(rng, num_samples):
    inhale, burst = _samples(rng, 0.15, 0.5), _samples(rng, 0.2, 0.5)
    breath = _filter(_noise(rng, inhale), _resonances(*_formants(rng))) * np.linspace(0, 1, inhale) ** 2
    blow = _band_noise(rng, burst, 800, 7000, 1) * _decay(burst, rng.uniform(0.05, 0.15), 0.01)
    return np.concatenate([rng.uniform(0.1, 0.4) * breath / breath.std(), 2 * blow / blow.std()])


@_source("event")
def _squeak(rng, num_samples):
    length = _samples(rng, 0.08, 0.5)
    start = _log_uniform(rng, 800, 2500)
    return _voice(rng, _glide(rng, length, *(start * 2 ** rng.uniform(-0.4, 0.4, 4))), 0.6) * _arch(length, 0.5)


@_source("event")
def _whoosh(rng, num_samples):
    length = _samples(rng, 0.3, 1.5)
    center = _log_uniform(rng, 400, 2000)
    carrier = _sine(_glide(rng, length, center, center * rng.uniform(1.5, 3), center))
    return carrier * _band_noise(rng, length, 1, _log_uniform(rng, 150, 600)) * _arch(length, 2)


# --- held-out sources -----------------------------------------------------------------------------------------------


@_source("event", held_out=True)
def _cowbell(rng, num_samples):
    length = _samples(rng, 0.2, 0.5)
    frequency = _log_uniform(rng, 450, 900)
    tones = [np.sign(_sine(f, length)) for f in (frequency, frequency * rng.uniform(1.45, 1.52))]
    return _filter(sum(tones), _band(400, 4000, 2)) * _decay(length, rng.uniform(0.06, 0.15))


@_source("event", held_out=True)
def _steel_pan(rng, num_samples):
    ratios = np.array([1.0, 2.0, 3.0, 4.1])
    length = _samples(rng, 0.3, 0.9)
    tone = _modes(rng, length, _log_uniform(rng, 250, 900) * ratios, [0.3, 0.2, 0.12, 0.08], [1, 0.8, 0.5, 0.3])
    return tone * (1 + 0.4 * _sine(rng.uniform(5, 9), length))


@_source("event", held_out=True)
def _croak(rng, num_samples):
    length = _samples(rng, 0.2, 0.6)
    curve = _glide(rng, length, rng.uniform(25, 50), rng.uniform(50, 90))
    grains = np.exp(-rng.uniform(6, 12) * (_phase(curve) % 1.0)).astype(np.float32)
    centers = np.array([rng.uniform(400, 900), rng.uniform(1200, 2500)])
    return _filter(grains * _noise(rng, length), _resonances(centers, centers * 0.15)) * _arch(length, 0.4)


@_source("event", held_out=True)
def _quack(rng, num_samples):
    length = _samples(rng, 0.12, 0.35)
    curve = _glide(rng, length, rng.uniform(250, 350), rng.uniform(180, 260))
    centers = np.array([rng.uniform(900, 1300), rng.uniform(2300, 3000)])
    return _filter(_voice(rng, curve, 0.0), _resonances(centers, centers * 0.12)) * _arch(length, 0.4)


@_source("event", held_out=True)
def _cricket(rng, num_samples):
    length = _samples(rng, 0.15, 0.5)
    pulses = np.maximum(_sine(rng.uniform(25, 60), length), 0)
    return _sine(_log_uniform(rng, 3500, 5500), length) * pulses * _arch(length, 0.3)


@_source("event", held_out=True)
def _zipper(rng, num_samples):
    length = _samples(rng, 0.25, 0.8)
    curve = _glide(rng, length, rng.uniform(40, 80), rng.uniform(90, 200))
    impulses = np.diff(np.floor(_phase(curve)), prepend=0).astype(np.float32)
    teeth = signal.oaconvolve(impulses, _click(rng, 2500, 6000))[:length]
    return teeth + 0.1 * teeth.std() * _noise(rng, length)


@_source("event", held_out=True)
def _creak(rng, num_samples):
    length = _samples(rng, 0.3, 1.0)
    curve = np.abs(_smooth_random(rng, length, 8, 30, 140))
    impulses = np.diff(np.floor(_phase(curve)), prepend=0).astype(np.float32)
    centers = _log_uniform(rng, 500, 3000, 3)
    return _filter(impulses, _resonances(centers, centers * 0.06)) * _arch(length, 0.3)


@_source("event", held_out=True)
def _ring_modulated_tone(rng, num_samples):
    length = _samples(rng, 0.15, 0.6)
    frequency = _log_uniform(rng, 500, 2500)
    return _sine(frequency, length) * _sine(frequency * rng.uniform(0.11, 0.37), length) * _arch(length, 0.5)


# --- temporal patterns ----------------------------------------------------------------------------------------------


@_envelope
def _steady(rng, num_samples):
    return np.ones(num_samples, dtype=np.float32)


@_envelope
def _fade_in(rng, num_samples):
    ramp = np.linspace(0, 1, num_samples, dtype=np.float32)
    return ramp ** rng.uniform(0.8, 3)


@_envelope
def _fade_out(rng, num_samples):
    ramp = np.linspace(1, 0, num_samples, dtype=np.float32)
    return ramp ** rng.uniform(0.8, 3)


@_envelope
def _swell(rng, num_samples):
    return _arch(num_samples, rng.uniform(1, 4))


@_envelope
def _tremolo(rng, num_samples):
    depth = rng.uniform(0.5, 1.0)
    return 1 - depth * (0.5 + 0.5 * _sine(_log_uniform(rng, 2, 14), num_samples, rng.random()))


@_envelope
def _fluctuating(rng, num_samples):
    return _decibels(_smooth_random(rng, num_samples, _log_uniform(rng, 1, 8), -25, 0))


@_onsets
def _single(rng, seconds):
    return np.array([rng.uniform(0.0, 0.75 * seconds)])


@_onsets
def _two_events(rng, seconds):
    first = rng.uniform(0, 0.4 * seconds)
    return np.array([first, first + rng.uniform(0.15, 0.5) * seconds])


@_onsets
def _slow_repeats(rng, seconds):
    return np.arange(rng.uniform(0, 0.5), seconds, rng.uniform(0.7, 1.6))


@_onsets
def _fast_repeats(rng, seconds):
    return np.arange(rng.uniform(0, 0.2), seconds, rng.uniform(0.12, 0.4))


@_onsets
def _irregular_repeats(rng, seconds):
    return np.sort(rng.uniform(0, 0.95 * seconds, rng.integers(4, 14)))


@_onsets
def _accelerating_repeats(rng, seconds):
    gaps = rng.uniform(0.5, 1.0) * rng.uniform(0.75, 0.9) ** np.arange(30)
    times = rng.uniform(0, 0.5) + np.cumsum(np.maximum(gaps, 0.04))
    return times[times < seconds]


@_onsets
def _clusters(rng, seconds):
    starts = np.arange(rng.uniform(0, 0.6), seconds, rng.uniform(1.0, 2.2))
    within = np.arange(rng.integers(3, 6)) * rng.uniform(0.1, 0.2)
    times = (starts[:, None] + within).ravel()
    return times[times < seconds]


@_onsets(held_out=True)
def _decelerating_repeats(rng, seconds):
    gaps = rng.uniform(0.08, 0.2) * rng.uniform(1.12, 1.3) ** np.arange(30)
    times = rng.uniform(0, 0.4) + np.cumsum(gaps)
    return times[times < seconds]


@_onsets(held_out=True)
def _pairs(rng, seconds):
    starts = np.arange(rng.uniform(0, 0.5), seconds, rng.uniform(0.9, 1.5))
    times = np.sort(np.concatenate([starts, starts + rng.uniform(0.2, 0.3)]))
    return times[times < seconds]


# --- registries -----------------------------------------------------------------------------------------------------

SOURCES = {name: source for name, source in _SOURCES.items() if not source.held_out}
HELD_OUT_SOURCES = {name: source for name, source in _SOURCES.items() if source.held_out}
PATTERNS = {name: pattern for name, pattern in _PATTERNS.items() if not pattern.held_out}
HELD_OUT_PATTERNS = {name: pattern for name, pattern in _PATTERNS.items() if pattern.held_out}


def compatible_patterns(source: str, patterns: tuple[str, ...] = tuple(PATTERNS)) -> tuple[str, ...]:
    """The patterns, out of `patterns`, that can place this source in time.

    Events need onsets, sounds with a rhythm of their own need an envelope, sustained sounds take both.
    """
    kind = _lookup(_SOURCES, "source", source).kind
    if kind == "sustained":
        return tuple(patterns)
    return tuple(name for name in patterns if (_PATTERNS[name].onsets is not None) == (kind == "event"))


# --- clips ----------------------------------------------------------------------------------------------------------


def _lookup(registry, field, name):
    if name not in registry:
        raise ValueError(f"`{field}` must be one of {sorted(registry)}, got {name!r}.")
    return registry[name]


def _gate(rng, times, num_samples):
    """Envelope of one burst after each onset: all bursts of a clip have the same attack and length."""
    gap = np.diff(times).min() if len(times) > 1 else 2.0
    length = int(np.clip(rng.uniform(0.3, 0.9) * gap, 0.03, 1.5) * SAMPLING_RATE)
    if rng.random() < 0.5:
        burst = _decay(length, length / SAMPLING_RATE / 4, attack=0.005)
    else:
        burst = np.minimum(1, 6 * _arch(length))
    return np.minimum(_at_times(num_samples, times, [burst], np.ones(len(times))), 1.0)


def render_dry(source: str, pattern: str, rng: np.random.Generator, num_samples: int = CLIP_SAMPLES) -> np.ndarray:
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
    made, placed = _lookup(_SOURCES, "source", source), _lookup(_PATTERNS, "pattern", pattern)
    if pattern not in compatible_patterns(source, (pattern,)):
        raise ValueError(f"`pattern` must be one that {made.kind} sources such as {source!r} take, got {pattern!r}.")
    if placed.envelope is not None:
        waveform = made.render(rng, num_samples) * placed.envelope(rng, num_samples)
    else:
        times = placed.onsets(rng, num_samples / SAMPLING_RATE)
        if made.kind == "sustained":
            waveform = made.render(rng, num_samples) * _gate(rng, times, num_samples)
        else:
            events = [_unit_peak(made.render(rng, num_samples)) for _ in range(rng.integers(1, 4))]
            waveform = _at_times(num_samples, times, events, _decibels(rng.uniform(-8, 0, len(times))))
    return _unit_peak(waveform)


def _unit_peak(waveform):
    return (waveform / max(float(np.abs(waveform).max()), 1e-6)).astype(np.float32)


def _room_and_equalizer(waveform, rng):
    """Random spectral tilt, a broad peak or dip, band limits, and for two clips in five reverberation."""
    tilt, peak, center = rng.uniform(-2, 2), rng.uniform(-6, 6), _log_uniform(rng, 150, 6000)
    low = _log_uniform(rng, 20, 200) if rng.random() < 0.3 else 10
    high = _log_uniform(rng, 3000, 8000) if rng.random() < 0.3 else 8000
    tail = _reverberation(rng) if rng.random() < 0.4 else None
    # Room for the tail, so that the circular convolution does not put the end of a clip in front of its start.
    padded = np.pad(waveform, (0, 0 if tail is None else len(tail)))

    def gain(frequencies):
        octaves = np.log2(np.maximum(frequencies, 30.0) / 1000.0)
        curve = _decibels(tilt * octaves + peak * np.exp(-((octaves - np.log2(center / 1000)) ** 2)))
        curve = curve * _band(low, high, 3)(frequencies)
        return curve if tail is None else curve * fft.rfft(tail, 2 * (len(frequencies) - 1))

    return _filter(padded, gain)[: len(waveform)]


def _reverberation(rng):
    """Impulse response: the direct sound, then noise that decays by 60 dB in 0.1 to 2 seconds."""
    decay_time = _log_uniform(rng, 0.1, 2.0)
    length = int(min(decay_time, 1.2) * SAMPLING_RATE)
    response = _noise(rng, length) * 10 ** (-3 * _seconds(length) / decay_time)
    response *= _decibels(rng.uniform(-16, 0)) / np.sqrt(np.sum(response**2))
    response[0] += 1.0
    return response


def _background(waveform, rng, snr):
    noise = _colored_noise(rng, len(waveform), rng.uniform(-0.5, 2.2))
    signal_power = np.mean(waveform**2)
    return waveform + noise * np.sqrt(signal_power / np.mean(noise**2)) * _decibels(-snr)


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
    num_samples: int = CLIP_SAMPLES,
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
    waveform = _unit_peak(waveform) * np.float32(_decibels(rng.uniform(*level)))
    return Sound(waveform if whole else _cut_and_pad(waveform, rng), source, pattern)


def generate_any(rng: np.random.Generator, **settings) -> Sound:
    """One clip of a random pretraining source and pattern; `settings` as in `generate`."""
    source = rng.choice(tuple(SOURCES)).item()
    pattern = rng.choice(compatible_patterns(source)).item()
    return generate(source, pattern, rng, **settings)

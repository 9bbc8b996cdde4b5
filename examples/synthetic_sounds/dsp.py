"""Building blocks of the sources: oscillators, noises, filters, envelopes. Waveforms are (num_samples,) at 16 kHz."""

import numpy as np
from scipy import fft, signal


SAMPLING_RATE = 16_000
CLIP_SAMPLES = 81_920  # 5.12 s: 512 frames of 10 ms
CLIP_SECONDS = CLIP_SAMPLES / SAMPLING_RATE


def log_uniform(rng, low, high, size=None):
    return np.exp(rng.uniform(np.log(low), np.log(high), size))


def decibels(value):
    return 10.0 ** (value / 20.0)


def seconds(num_samples):
    return np.arange(num_samples, dtype=np.float32) / SAMPLING_RATE


def noise(rng, num_samples):
    return rng.standard_normal(num_samples, dtype=np.float32)


def phase(frequency, num_samples=None):
    """Cycles passed, (num_samples,), of an oscillator of constant or time-varying frequency in Hz."""
    if np.ndim(frequency) == 0:
        return np.arange(num_samples) * (frequency / SAMPLING_RATE)
    return np.cumsum(frequency, dtype=np.float64) / SAMPLING_RATE


def sine(frequency, num_samples=None, start=0.0):
    cycles = (phase(frequency, num_samples) + start) % 1.0
    return np.sin((2 * np.pi * cycles).astype(np.float32))


def wavetable(phase, amplitudes, rng):
    """Sum of harmonics with the given amplitudes and random phases, read from a table of one period."""
    spectrum = np.zeros(2049, dtype=np.complex64)
    spectrum[1 : len(amplitudes) + 1] = amplitudes * np.exp(2j * np.pi * rng.random(len(amplitudes)))
    table = fft.irfft(spectrum, 4096).astype(np.float32)
    return table[((phase % 1.0) * 4096).astype(np.int64) % 4096]


def harmonic_amplitudes(frequency, slope, limit=60):
    """Amplitudes k**-slope of the harmonics that stay below 7.8 kHz."""
    count = int(np.clip(7800 / frequency, 1, limit))
    return np.arange(1, count + 1) ** -float(slope)


def smooth_random(rng, num_samples, rate, low=-1.0, high=1.0):
    """A random curve in [low, high] that takes about `rate` new values a second."""
    count = max(4, int(num_samples / SAMPLING_RATE * rate) + 2)
    knots = rng.uniform(low, high, count)
    return np.interp(np.linspace(0, count - 1, num_samples), np.arange(count), knots).astype(np.float32)


def apply_gain(waveform, gain):
    """Apply `gain(frequencies in Hz)` as a zero-phase filter."""
    length = fft.next_fast_len(len(waveform), real=True)
    spectrum = fft.rfft(waveform.astype(np.float32, copy=False), length)
    frequencies = np.fft.rfftfreq(length, 1 / SAMPLING_RATE).astype(np.float32)
    return fft.irfft(spectrum * gain(frequencies), length)[: len(waveform)]


def band(low, high, steepness=4):
    """Gain of a band-pass filter; `steepness` is the Butterworth order of both edges."""

    def gain(frequencies):
        frequencies = np.maximum(frequencies, 1.0)
        return 1 / np.sqrt(
            (1 + (low / frequencies) ** (2 * steepness)) * (1 + (frequencies / high) ** (2 * steepness))
        )

    return gain


def resonances(centers, bandwidths, amplitudes=None):
    """Gain of resonances side by side, all in Hz."""
    amplitudes = np.ones(len(centers)) if amplitudes is None else amplitudes

    def gain(frequencies):
        total = np.zeros_like(frequencies)
        for center, bandwidth, amplitude in zip(centers, bandwidths, amplitudes):
            total += amplitude / (1 + ((frequencies - center) / (0.5 * bandwidth)) ** 2)
        return total

    return gain


def colored_noise(rng, num_samples, slope):
    """Noise whose power falls with frequency**-slope."""
    return apply_gain(noise(rng, num_samples), lambda frequencies: np.maximum(frequencies, 30.0) ** (-slope / 2))


def band_noise(rng, num_samples, low, high, steepness=4):
    return apply_gain(noise(rng, num_samples), band(low, high, steepness))


def modes(rng, num_samples, frequencies, decays, amplitudes):
    """Damped sines: frequencies in Hz, decays as time constants in seconds."""
    time = seconds(num_samples)
    waveform = np.zeros(num_samples, dtype=np.float32)
    for frequency, decay, amplitude in zip(frequencies, decays, amplitudes):
        if frequency < 7900:
            waveform += amplitude * np.exp(-time / decay) * np.sin(2 * np.pi * (frequency * time + rng.random()))
    return waveform


def decay(num_samples, time_constant, attack=0.002):
    time = seconds(num_samples)
    return np.minimum(time / attack, 1.0) * np.exp(-time / time_constant)


def arch(num_samples, power=1.0):
    """An envelope that rises from zero and falls back to zero."""
    return np.maximum(np.sin(np.linspace(0, np.pi, num_samples, dtype=np.float32)), 0) ** power


def random_length(rng, low, high):
    """A random duration between two times in seconds, as a number of samples."""
    return int(log_uniform(rng, low, high) * SAMPLING_RATE)


def sprinkle(rng, num_samples, rate, kernels, amplitude_spread=1.0):
    """Copies of the kernels at random times, `rate` a second on average, with log-normal amplitudes."""
    waveform = np.zeros(num_samples, dtype=np.float32)
    for kernel in kernels:
        count = max(1, rng.poisson(rate * num_samples / SAMPLING_RATE / len(kernels)))
        impulses = np.zeros(num_samples, dtype=np.float32)
        amplitudes = np.exp(amplitude_spread * rng.standard_normal(count)) * rng.choice([-1, 1], count)
        np.add.at(impulses, rng.integers(0, num_samples, count), amplitudes.astype(np.float32))
        waveform += signal.oaconvolve(impulses, kernel.astype(np.float32))[:num_samples]
    return waveform


def at_times(num_samples, times, events, amplitudes):
    """The events, cycled through, placed at the times in seconds."""
    waveform = np.zeros(num_samples, dtype=np.float32)
    for index, (time, amplitude) in enumerate(zip(times, amplitudes)):
        start = int(time * SAMPLING_RATE)
        event = events[index % len(events)][: max(0, num_samples - start)]
        waveform[start : start + len(event)] += amplitude * event
    return waveform


def click(rng, low=1500, high=6000):
    return modes(rng, 480, [log_uniform(rng, low, high)], [log_uniform(rng, 0.0005, 0.004)], [1.0])


def formants(rng):
    """Centers and bandwidths, in Hz, of the three resonances of a vowel-like sound."""
    size = rng.uniform(0.85, 1.5)
    centers = size * np.array([rng.uniform(280, 850), rng.uniform(900, 2200), rng.uniform(2400, 3200)])
    return centers, rng.uniform(60, 180, 3) * np.array([1.0, 1.4, 2.0])


def voice(rng, fundamental, slope=1.0):
    """Glottis-like harmonics that follow a fundamental frequency curve in Hz."""
    return wavetable(phase(fundamental), harmonic_amplitudes(np.max(fundamental), slope), rng)


def glide(rng, num_samples, *points):
    """A frequency curve through the given points, evenly spaced, straight on a logarithmic scale."""
    positions = np.linspace(0, num_samples - 1, len(points))
    return np.exp(np.interp(np.arange(num_samples), positions, np.log(points)))


def sweep_position(rng, num_samples, shortest=0.25, longest=5.0):
    """Position in [0, 1) within sweeps that repeat with a random period."""
    period = log_uniform(rng, shortest, longest)
    return ((seconds(num_samples) / period + rng.random()) % 1.0).astype(np.float32)

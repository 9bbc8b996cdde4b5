"""Sources with a rhythm of their own, and short events that a pattern repeats."""

import numpy as np
from scipy import signal

from . import dsp
from .registry import source


# --- sounds with a rhythm of their own ------------------------------------------------------------------------------


@source("paced")
def _regular_clicks(rng, num_samples):
    times = np.arange(rng.uniform(0, 0.5), num_samples / dsp.SAMPLING_RATE, 1 / dsp.log_uniform(rng, 1.5, 9))
    return dsp.at_times(num_samples, times, [dsp.click(rng, 400, 6000)], np.ones(len(times)))


@source("paced")
def _irregular_clicks(rng, num_samples):
    times = rng.uniform(0, num_samples / dsp.SAMPLING_RATE, rng.integers(5, 40))
    return dsp.at_times(num_samples, times, [dsp.click(rng, 400, 6000)], rng.uniform(0.3, 1, len(times)))


@source("paced")
def _clock_ticks(rng, num_samples):
    times = np.arange(rng.uniform(0, 0.5), num_samples / dsp.SAMPLING_RATE, 1 / rng.choice([1, 2, 3, 4, 5]))
    ticks = [dsp.click(rng, 1500, 5000) + rng.uniform(0.2, 0.6) * dsp.click(rng, 400, 1500) for _ in range(2)]
    return dsp.at_times(num_samples, times, ticks, np.ones(len(times)))


@source("paced")
def _bouncing_ball(rng, num_samples):
    gaps = rng.uniform(0.25, 0.7) * rng.uniform(0.75, 0.92) ** np.arange(40)
    times = rng.uniform(0, 1.0) + np.concatenate([[0], np.cumsum(gaps)])
    knock = dsp.modes(
        rng, 3200, dsp.log_uniform(rng, 120, 2500, 3), dsp.log_uniform(rng, 0.005, 0.04, 3), [1, 0.6, 0.4]
    )
    return dsp.at_times(num_samples, times, [knock], rng.uniform(0.85, 0.97) ** np.arange(41))


@source("paced")
def _breathing(rng, num_samples):
    position = dsp.sweep_position(rng, num_samples, 1.0, 3.5)
    breath = np.where(position < 0.4, np.sin(np.pi * position / 0.4), 0) ** 2
    breath_out = np.where((position > 0.5) & (position < 0.9), np.sin(np.pi * (position - 0.5) / 0.4), 0) ** 2
    first, second = (dsp.apply_gain(dsp.noise(rng, num_samples), dsp.resonances(*dsp.formants(rng))) for _ in range(2))
    return breath * first / first.std() + breath_out * second / second.std()


@source("paced")
def _heartbeat(rng, num_samples):
    beats = np.arange(rng.uniform(0, 0.6), num_samples / dsp.SAMPLING_RATE, 60 / rng.uniform(50, 150))
    times = np.sort(np.concatenate([beats, beats + rng.uniform(0.12, 0.22)]))
    thumps = [_drum(rng, 4800), 0.6 * _drum(rng, 4800)]
    return dsp.at_times(num_samples, times, thumps, np.ones(len(times)))


# --- events ---------------------------------------------------------------------------------------------------------


@source("event")
def _plucked_string(rng, num_samples):
    period = int(dsp.SAMPLING_RATE / dsp.log_uniform(rng, 80, 800))
    length = min(num_samples, dsp.random_length(rng, 0.4, 2.0))
    burst = np.zeros(length, dtype=np.float32)
    burst[:period] = rng.uniform(-1, 1, min(period, length))
    denominator = np.zeros(period + 2, dtype=np.float32)
    denominator[0], denominator[-2], denominator[-1] = 1.0, -0.5 * 0.996, -0.5 * 0.996
    return signal.lfilter(np.ones(1, dtype=np.float32), denominator, burst)


@source("event")
def _struck_bar(rng, num_samples):
    ratios = np.array([1.0, 2.756, 5.404, 8.933])
    return dsp.modes(
        rng,
        dsp.random_length(rng, 0.3, 1.2),
        dsp.log_uniform(rng, 200, 1500) * ratios,
        dsp.log_uniform(rng, 0.08, 0.4) / ratios**0.7,
        [1, 0.7, 0.4, 0.2],
    )


@source("event")
def _bell(rng, num_samples):
    ratios = np.array([0.5, 1.0, 1.2, 1.5, 2.0, 2.7, 3.3, 4.2]) * rng.uniform(0.98, 1.02, 8)
    return dsp.modes(
        rng,
        dsp.random_length(rng, 1.0, 3.0),
        dsp.log_uniform(rng, 250, 1500) * ratios,
        rng.uniform(0.3, 1.2) / ratios**0.5,
        rng.uniform(0.3, 1, 8),
    )


@source("event")
def _drum(rng, num_samples):
    length = dsp.random_length(rng, 0.15, 0.6)
    low = dsp.log_uniform(rng, 45, 160)
    curve = low * (1 + rng.uniform(0.5, 3) * np.exp(-dsp.seconds(length) / 0.03))
    return dsp.sine(curve) * dsp.decay(length, rng.uniform(0.05, 0.2)) + 0.1 * dsp.noise(rng, length) * dsp.decay(
        length, 0.01
    )


@source("event")
def _snare(rng, num_samples):
    length = dsp.random_length(rng, 0.15, 0.4)
    rattle = dsp.band_noise(rng, length, 1000, 7500, 1) * dsp.decay(length, rng.uniform(0.03, 0.12))
    return rattle + 0.7 * dsp.sine(rng.uniform(150, 280), length) * dsp.decay(length, 0.05)


@source("event")
def _wood_block(rng, num_samples):
    return dsp.modes(
        rng, 3200, dsp.log_uniform(rng, 400, 2500) * np.array([1, 2.3]), rng.uniform(0.01, 0.04, 2), [1, 0.6]
    )


@source("event")
def _glass_clink(rng, num_samples):
    return dsp.modes(
        rng,
        dsp.random_length(rng, 0.2, 1.0),
        dsp.log_uniform(rng, 1800, 7500, 6),
        dsp.log_uniform(rng, 0.03, 0.3, 6),
        rng.uniform(0.3, 1, 6),
    )


@source("event")
def _metal_clang(rng, num_samples):
    clang = dsp.modes(
        rng,
        dsp.random_length(rng, 0.3, 1.5),
        dsp.log_uniform(rng, 200, 7000, 16),
        dsp.log_uniform(rng, 0.05, 0.5, 16),
        rng.uniform(0.2, 1, 16),
    )
    clang[:160] += 3 * dsp.noise(rng, 160)
    return clang


@source("event")
def _water_drop(rng, num_samples):
    length = dsp.random_length(rng, 0.05, 0.2)
    start = dsp.log_uniform(rng, 500, 2000)
    return dsp.sine(dsp.glide(rng, length, start, start * rng.uniform(1.3, 2.5))) * dsp.decay(
        length, length / dsp.SAMPLING_RATE / 4
    )


@source("event")
def _clap(rng, num_samples):
    times = np.cumsum(rng.uniform(0.004, 0.015, 4))
    slaps = [dsp.band_noise(rng, 2400, 700, 4000, 2) * dsp.decay(2400, 0.008, 0.0005) for _ in range(3)]
    tail = dsp.band_noise(rng, 2400, 700, 4000, 2) * dsp.decay(2400, 0.04, 0.0005)
    return dsp.at_times(3600, times, [*slaps, tail], np.ones(4))


@source("event")
def _door_knock(rng, num_samples):
    return dsp.modes(
        rng, 2400, dsp.log_uniform(rng, 90, 900, 4), dsp.log_uniform(rng, 0.01, 0.05, 4), [1, 0.7, 0.5, 0.3]
    )


@source("event")
def _footstep(rng, num_samples):
    heel, toe = (
        dsp.band_noise(rng, 2400, 60, dsp.log_uniform(rng, 400, 2500), 1) * dsp.decay(2400, 0.02) for _ in range(2)
    )
    return dsp.at_times(4800, [0, rng.uniform(0.05, 0.12)], [heel, toe], [1, rng.uniform(0.3, 0.8)])


@source("event")
def _explosion(rng, num_samples):
    length = dsp.random_length(rng, 0.6, 2.5)
    blast = dsp.colored_noise(rng, length, rng.uniform(1.0, 2.2)) * dsp.decay(length, length / dsp.SAMPLING_RATE / 5)
    return np.tanh(3 * blast / blast.std())


@source("event")
def _beep(rng, num_samples):
    length = dsp.random_length(rng, 0.05, 0.5)
    frequency = dsp.log_uniform(rng, 400, 4000)
    tone = dsp.wavetable(dsp.phase(frequency, length), dsp.harmonic_amplitudes(frequency, rng.uniform(1, 4)), rng)
    return tone * np.minimum(1, 8 * dsp.arch(length))


@source("event")
def _zap(rng, num_samples):
    length = dsp.random_length(rng, 0.05, 0.35)
    curve = dsp.glide(rng, length, dsp.log_uniform(rng, 2500, 7000), dsp.log_uniform(rng, 80, 500))
    return dsp.sine(curve) * dsp.decay(length, length / dsp.SAMPLING_RATE / 2)


@source("event")
def _whistle(rng, num_samples):
    length = dsp.random_length(rng, 0.2, 1.0)
    start = dsp.log_uniform(rng, 700, 2500)
    curve = dsp.glide(rng, length, start, start * rng.uniform(0.7, 1.8), start * rng.uniform(0.7, 1.8))
    return (dsp.sine(curve) + 0.05 * dsp.noise(rng, length)) * dsp.arch(length, 0.5)


@source("event")
def _bird_chirp(rng, num_samples):
    length = dsp.random_length(rng, 0.04, 0.25)
    start = dsp.log_uniform(rng, 2000, 5500)
    curve = dsp.glide(rng, length, *(start * 2 ** rng.uniform(-0.6, 0.6, 3)))
    return dsp.sine(np.minimum(curve, 7500)) * dsp.arch(length)


@source("event")
def _bird_trill(rng, num_samples):
    length = dsp.random_length(rng, 0.3, 1.2)
    curve = dsp.log_uniform(rng, 2000, 5000) * 2 ** (rng.uniform(0.1, 0.5) * dsp.sine(rng.uniform(12, 45), length))
    return dsp.sine(curve) * dsp.arch(length, 0.5)


@source("event")
def _bark(rng, num_samples):
    length = dsp.random_length(rng, 0.1, 0.4)
    start = dsp.log_uniform(rng, 180, 700)
    voice = dsp.voice(
        rng, dsp.glide(rng, length, start, start * rng.uniform(1.1, 1.5), start * rng.uniform(0.5, 0.8)), 0.5
    )
    rough = voice / voice.std() * (1 + 0.4 * dsp.noise(rng, length)) + 0.5 * dsp.noise(rng, length)
    return dsp.apply_gain(rough, dsp.resonances(*dsp.formants(rng))) * dsp.arch(length, 0.7)


@source("event")
def _growl(rng, num_samples):
    length = dsp.random_length(rng, 0.4, 1.5)
    curve = dsp.log_uniform(rng, 40, 120) * (1 + 0.15 * dsp.smooth_random(rng, length, 30))
    voice = dsp.voice(rng, curve, 0.3) * (1 + 0.5 * dsp.noise(rng, length))
    return dsp.apply_gain(voice, dsp.resonances(*dsp.formants(rng))) * dsp.arch(length, 0.5)


@source("event")
def _meow(rng, num_samples):
    length = dsp.random_length(rng, 0.4, 1.2)
    start = dsp.log_uniform(rng, 300, 700)
    curve = dsp.glide(rng, length, start, start * rng.uniform(1.3, 1.8), start * rng.uniform(0.8, 1.1))
    voice, mix = dsp.voice(rng, curve, 0.8), np.linspace(0, 1, length, dtype=np.float32)
    closed, opened = (dsp.apply_gain(voice, dsp.resonances(*dsp.formants(rng))) for _ in range(2))
    return ((1 - mix) * closed + mix * opened) * dsp.arch(length, 0.7)


@source("event")
def _wail(rng, num_samples):
    length = dsp.random_length(rng, 0.5, 1.6)
    start = dsp.log_uniform(rng, 300, 650)
    curve = dsp.glide(rng, length, start * 0.8, start * rng.uniform(1.1, 1.4), start, start * 0.75)
    curve = curve * (1 + 0.03 * dsp.sine(rng.uniform(4, 9), length))
    return dsp.apply_gain(dsp.voice(rng, curve, 0.4), dsp.resonances(*dsp.formants(rng))) * dsp.arch(length, 0.4)


@source("event")
def _crow(rng, num_samples):
    length = dsp.random_length(rng, 0.6, 1.8)
    start = dsp.log_uniform(rng, 350, 800)
    points = start * np.array([0.8, 1.0, rng.uniform(0.9, 1.2), rng.uniform(1.2, 1.6), rng.uniform(0.9, 1.2), 0.6])
    voice = dsp.voice(rng, dsp.glide(rng, length, *points), 0.3)
    rasp = 1 + rng.uniform(0.2, 0.8) * dsp.sine(rng.uniform(40, 110), length)
    syllables = np.maximum(0.15, dsp.smooth_random(rng, length, 6, 0, 1))
    return dsp.apply_gain(voice * rasp * syllables, dsp.resonances(*dsp.formants(rng))) * dsp.arch(length, 0.4)


@source("event")
def _cough(rng, num_samples):
    length = dsp.random_length(rng, 0.12, 0.4)
    burst = dsp.apply_gain(dsp.noise(rng, length), dsp.resonances(*dsp.formants(rng))) * dsp.decay(
        length, rng.uniform(0.03, 0.1)
    )
    voice = dsp.apply_gain(dsp.voice(rng, np.full(length, rng.uniform(100, 250))), dsp.resonances(*dsp.formants(rng)))
    return burst / burst.std() + rng.uniform(0.1, 0.6) * voice / voice.std() * dsp.arch(length)


@source("event")
def _sneeze(rng, num_samples):
    inhale, burst = dsp.random_length(rng, 0.15, 0.5), dsp.random_length(rng, 0.2, 0.5)
    breath = (
        dsp.apply_gain(dsp.noise(rng, inhale), dsp.resonances(*dsp.formants(rng))) * np.linspace(0, 1, inhale) ** 2
    )
    blow = dsp.band_noise(rng, burst, 800, 7000, 1) * dsp.decay(burst, rng.uniform(0.05, 0.15), 0.01)
    return np.concatenate([rng.uniform(0.1, 0.4) * breath / breath.std(), 2 * blow / blow.std()])


@source("event")
def _squeak(rng, num_samples):
    length = dsp.random_length(rng, 0.08, 0.5)
    start = dsp.log_uniform(rng, 800, 2500)
    return dsp.voice(rng, dsp.glide(rng, length, *(start * 2 ** rng.uniform(-0.4, 0.4, 4))), 0.6) * dsp.arch(
        length, 0.5
    )


@source("event")
def _whoosh(rng, num_samples):
    length = dsp.random_length(rng, 0.3, 1.5)
    center = dsp.log_uniform(rng, 400, 2000)
    carrier = dsp.sine(dsp.glide(rng, length, center, center * rng.uniform(1.5, 3), center))
    return carrier * dsp.band_noise(rng, length, 1, dsp.log_uniform(rng, 150, 600)) * dsp.arch(length, 2)

"""Sources that last the whole clip: tones, voices, machines, noises."""

import numpy as np
from scipy import signal

from . import dsp
from .registry import source


# --- sustained tones ------------------------------------------------------------------------------------------------


@source("sustained")
def _pure_tone(rng, num_samples):
    return dsp.sine(dsp.log_uniform(rng, 80, 6000), num_samples)


@source("sustained")
def _tone_pair(rng, num_samples):
    frequency = dsp.log_uniform(rng, 100, 2500)
    return dsp.sine(frequency, num_samples) + dsp.sine(frequency * rng.uniform(1.2, 3.0), num_samples)


@source("sustained")
def _beating_tones(rng, num_samples):
    frequency = dsp.log_uniform(rng, 120, 4000)
    return dsp.sine(frequency, num_samples) + dsp.sine(frequency + rng.uniform(2, 15), num_samples)


@source("sustained")
def _harmonic_tone(rng, num_samples):
    frequency = dsp.log_uniform(rng, 60, 1200)
    return dsp.wavetable(
        dsp.phase(frequency, num_samples), dsp.harmonic_amplitudes(frequency, rng.uniform(1.2, 2.5)), rng
    )


@source("sustained")
def _bright_harmonic_tone(rng, num_samples):
    frequency = dsp.log_uniform(rng, 60, 1000)
    return dsp.wavetable(
        dsp.phase(frequency, num_samples), dsp.harmonic_amplitudes(frequency, rng.uniform(0.0, 0.7)), rng
    )


@source("sustained")
def _odd_harmonic_tone(rng, num_samples):
    frequency = dsp.log_uniform(rng, 60, 1000)
    amplitudes = dsp.harmonic_amplitudes(frequency, rng.uniform(0.5, 1.5))
    amplitudes[1::2] = 0
    return dsp.wavetable(dsp.phase(frequency, num_samples), amplitudes, rng)


@source("sustained")
def _inharmonic_tone(rng, num_samples):
    frequencies = dsp.log_uniform(rng, 100, 6000, rng.integers(4, 10))
    return sum(rng.uniform(0.2, 1) * dsp.sine(frequency, num_samples) for frequency in frequencies)


@source("sustained")
def _chord(rng, num_samples):
    root = dsp.log_uniform(rng, 100, 500)
    steps = rng.choice([[0, 4, 7], [0, 3, 7], [0, 5, 9], [0, 3, 6]])
    notes = root * 2 ** (steps / 12)
    return sum(dsp.wavetable(dsp.phase(note, num_samples), dsp.harmonic_amplitudes(note, 1.5), rng) for note in notes)


@source("sustained")
def _vibrato_tone(rng, num_samples):
    frequency, depth = dsp.log_uniform(rng, 150, 1200), rng.uniform(0.02, 0.08)
    curve = frequency * (1 + depth * dsp.sine(rng.uniform(3, 9), num_samples))
    return dsp.wavetable(dsp.phase(curve), dsp.harmonic_amplitudes(frequency * 1.1, rng.uniform(1, 2)), rng)


@source("sustained")
def _frequency_modulated_tone(rng, num_samples):
    carrier, index = dsp.log_uniform(rng, 150, 2000), rng.uniform(1, 8)
    modulator = carrier * rng.uniform(0.1, 1.7)
    phase = dsp.phase(carrier, num_samples) + index / (2 * np.pi) * dsp.sine(modulator, num_samples)
    return np.sin(2 * np.pi * (phase % 1.0)).astype(np.float32)


@source("sustained")
def _rising_sweep(rng, num_samples):
    low, octaves = dsp.log_uniform(rng, 100, 1500), rng.uniform(0.7, 2.3)
    curve = low * 2 ** (octaves * dsp.sweep_position(rng, num_samples))
    return dsp.wavetable(dsp.phase(curve), dsp.harmonic_amplitudes(low * 2**octaves, rng.uniform(1, 4)), rng)


@source("sustained")
def _falling_sweep(rng, num_samples):
    low, octaves = dsp.log_uniform(rng, 100, 1500), rng.uniform(0.7, 2.3)
    curve = low * 2 ** (octaves * (1 - dsp.sweep_position(rng, num_samples)))
    return dsp.wavetable(dsp.phase(curve), dsp.harmonic_amplitudes(low * 2**octaves, rng.uniform(1, 4)), rng)


@source("sustained")
def _siren(rng, num_samples):
    center, octaves = dsp.log_uniform(rng, 400, 1600), rng.uniform(0.3, 0.8)
    curve = center * 2 ** (octaves * dsp.sine(dsp.log_uniform(rng, 0.2, 3), num_samples, rng.random()))
    return dsp.wavetable(dsp.phase(curve), dsp.harmonic_amplitudes(center * 2, rng.uniform(0.8, 2.5)), rng)


@source("paced")
def _two_tone_alarm(rng, num_samples):
    low, ratio, rate = dsp.log_uniform(rng, 400, 2500), rng.uniform(1.15, 2.0), dsp.log_uniform(rng, 1, 8)
    curve = np.where((dsp.seconds(num_samples) * rate + rng.random()) % 1 < 0.5, low, low * ratio)
    return dsp.wavetable(dsp.phase(curve), dsp.harmonic_amplitudes(low * ratio, rng.uniform(0.8, 3)), rng)


@source("paced")
def _melody(rng, num_samples):
    steps = rng.integers(0, 13, 64)
    note = (dsp.seconds(num_samples) * dsp.log_uniform(rng, 2, 8)).astype(np.int64)
    root = dsp.log_uniform(rng, 150, 900)
    return dsp.wavetable(dsp.phase(root * 2 ** (steps[note % 64] / 12)), dsp.harmonic_amplitudes(2 * root, 1.5), rng)


# --- voices and animals, sustained ----------------------------------------------------------------------------------


@source("sustained")
def _vowel(rng, num_samples):
    curve = dsp.log_uniform(rng, 90, 350) * (1 + 0.03 * dsp.smooth_random(rng, num_samples, 6))
    return dsp.apply_gain(dsp.voice(rng, curve), dsp.resonances(*dsp.formants(rng)))


@source("sustained")
def _babble(rng, num_samples):
    curve = dsp.log_uniform(rng, 90, 300) * 2 ** (0.35 * dsp.smooth_random(rng, num_samples, 4))
    voice, mix = dsp.voice(rng, curve), dsp.smooth_random(rng, num_samples, 5, 0, 1)
    vowels = [dsp.apply_gain(voice, dsp.resonances(*dsp.formants(rng))) for _ in range(2)]
    return mix * vowels[0] + (1 - mix) * vowels[1]


@source("sustained")
def _whisper(rng, num_samples):
    return dsp.apply_gain(dsp.noise(rng, num_samples), dsp.resonances(*dsp.formants(rng)))


@source("sustained")
def _insect_buzz(rng, num_samples):
    curve = dsp.log_uniform(rng, 120, 500) * 2 ** (0.2 * dsp.smooth_random(rng, num_samples, 8))
    buzz = dsp.voice(rng, curve, slope=rng.uniform(0.2, 0.8))
    return dsp.apply_gain(buzz, dsp.band(*np.array([0.7, 1.8]) * dsp.log_uniform(rng, 500, 3000), 2))


@source("sustained")
def _cicada(rng, num_samples):
    center = dsp.log_uniform(rng, 2500, 6500)
    modulation = np.maximum(dsp.sine(dsp.log_uniform(rng, 30, 200), num_samples), 0) ** 2
    return modulation * dsp.band_noise(rng, num_samples, center * 0.85, center * 1.15)


# --- machines -------------------------------------------------------------------------------------------------------


@source("sustained")
def _engine(rng, num_samples):
    curve = dsp.log_uniform(rng, 18, 90) * (1 + 0.06 * dsp.smooth_random(rng, num_samples, 15))
    phase = dsp.phase(curve)
    pulses = np.exp(-((phase % 1.0) * rng.uniform(4, 15))).astype(np.float32)
    rough = pulses * (1 + rng.uniform(0.2, 1) * dsp.noise(rng, num_samples))
    return dsp.apply_gain(rough, dsp.resonances(dsp.log_uniform(rng, 60, 2500, 4), rng.uniform(80, 500, 4)))


@source("sustained")
def _revving_engine(rng, num_samples):
    rate = rng.uniform(0.3, 1.5)
    curve = dsp.log_uniform(rng, 50, 130) * 2 ** (0.6 * dsp.smooth_random(rng, num_samples, rate * 3))
    voice = dsp.voice(rng, curve, rng.uniform(0.2, 0.8))
    rough = voice * (1 + 0.5 * dsp.noise(rng, num_samples))
    return dsp.apply_gain(rough, dsp.resonances(dsp.log_uniform(rng, 200, 4000, 4), rng.uniform(200, 900, 4)))


@source("sustained")
def _electric_motor(rng, num_samples):
    curve = dsp.log_uniform(rng, 200, 1500) * (1 + 0.01 * dsp.smooth_random(rng, num_samples, 3))
    whine = dsp.voice(rng, curve, rng.uniform(0.5, 1.2))
    noise = dsp.band_noise(rng, num_samples, 300, 6000, 1)
    return whine / whine.std() + rng.uniform(0.2, 0.8) * noise / noise.std()


@source("sustained")
def _mains_hum(rng, num_samples):
    amplitudes = rng.exponential(1.0, 20) * np.arange(1, 21) ** -0.7
    return dsp.wavetable(dsp.phase(rng.choice([50.0, 60.0, 100.0, 120.0]), num_samples), amplitudes, rng)


@source("sustained")
def _rotor(rng, num_samples):
    phase = dsp.phase(dsp.log_uniform(rng, 7, 28) * (1 + 0.03 * dsp.smooth_random(rng, num_samples, 2)))
    chop = np.exp(-rng.uniform(2, 8) * (phase % 1.0)).astype(np.float32)
    return chop * dsp.colored_noise(rng, num_samples, rng.uniform(0.5, 2.0))


@source("sustained")
def _ratchet(rng, num_samples):
    phase = dsp.phase(dsp.log_uniform(rng, 10, 45) * (1 + 0.1 * dsp.smooth_random(rng, num_samples, 3)))
    impulses = np.diff(np.floor(phase), prepend=0).astype(np.float32)
    return signal.oaconvolve(impulses, dsp.click(rng, 800, 5000))[:num_samples]


@source("sustained")
def _pulse_buzz(rng, num_samples):
    frequency = dsp.log_uniform(rng, 30, 160)
    pulses = dsp.wavetable(dsp.phase(frequency, num_samples), np.ones(int(7800 / frequency)), rng)
    gate = dsp.phase(frequency, num_samples) % 1.0 < 0.15
    return pulses * 0.3 + gate.astype(np.float32) * dsp.band_noise(rng, num_samples, 500, 6000, 1)


# --- noises ---------------------------------------------------------------------------------------------------------


@source("sustained")
def _white_noise(rng, num_samples):
    return dsp.noise(rng, num_samples)


@source("sustained")
def _pink_noise(rng, num_samples):
    return dsp.colored_noise(rng, num_samples, rng.uniform(0.8, 1.2))


@source("sustained")
def _brown_noise(rng, num_samples):
    return dsp.colored_noise(rng, num_samples, rng.uniform(1.8, 2.4))


@source("sustained")
def _hiss(rng, num_samples):
    return dsp.apply_gain(dsp.noise(rng, num_samples), dsp.band(dsp.log_uniform(rng, 2500, 5000), 8000, 2))


@source("sustained")
def _narrow_band_noise(rng, num_samples):
    center = dsp.log_uniform(rng, 200, 5000)
    return dsp.band_noise(rng, num_samples, center * 0.93, center * 1.07)


@source("sustained")
def _wide_band_noise(rng, num_samples):
    center = dsp.log_uniform(rng, 400, 3000)
    return dsp.band_noise(rng, num_samples, center / 1.7, center * 1.7)


@source("sustained")
def _rising_noise(rng, num_samples):
    carrier = dsp.sine(dsp.log_uniform(rng, 300, 1500) * 2 ** (2 * dsp.sweep_position(rng, num_samples)))
    return carrier * dsp.band_noise(rng, num_samples, 1, dsp.log_uniform(rng, 60, 300))


@source("sustained")
def _falling_noise(rng, num_samples):
    carrier = dsp.sine(dsp.log_uniform(rng, 300, 1500) * 2 ** (2 - 2 * dsp.sweep_position(rng, num_samples)))
    return carrier * dsp.band_noise(rng, num_samples, 1, dsp.log_uniform(rng, 60, 300))


@source("sustained")
def _comb_noise(rng, num_samples):
    delay, feedback = 1 / dsp.log_uniform(rng, 100, 1200), rng.uniform(0.8, 0.97)

    def gain(frequencies):
        return 1 / np.abs(1 - feedback * np.exp(-2j * np.pi * frequencies * delay))

    return dsp.apply_gain(dsp.noise(rng, num_samples), gain)


@source("sustained")
def _resonant_noise(rng, num_samples):
    centers = dsp.log_uniform(rng, 150, 6000, rng.integers(2, 6))
    return dsp.apply_gain(
        dsp.noise(rng, num_samples), dsp.resonances(centers, centers * rng.uniform(0.01, 0.08, len(centers)))
    )


@source("sustained")
def _wind(rng, num_samples):
    gust = dsp.smooth_random(rng, num_samples, 1.5, 0, 1)
    howl = dsp.sine(dsp.log_uniform(rng, 250, 700) * 2**gust) * dsp.band_noise(rng, num_samples, 1, 80)
    rumble = dsp.colored_noise(rng, num_samples, 1.8)
    return gust**1.5 * (rumble / rumble.std() + rng.uniform(0, 1.5) * howl / howl.std()) + 0.1 * rumble / rumble.std()


@source("paced")
def _sea_waves(rng, num_samples):
    position = dsp.sweep_position(rng, num_samples, 2.0, 6.0)
    swell = np.where(position < 0.4, position / 0.4, np.exp(-4 * (position - 0.4))) ** 1.5
    return (0.15 + swell) * dsp.colored_noise(rng, num_samples, rng.uniform(0.5, 1.5))


@source("sustained")
def _rain(rng, num_samples):
    drops = dsp.sprinkle(
        rng, num_samples, dsp.log_uniform(rng, 300, 3000), [dsp.click(rng), dsp.click(rng, 600, 3000)], 0.8
    )
    wash = dsp.colored_noise(rng, num_samples, rng.uniform(-0.3, 0.6))
    return drops / drops.std() + rng.uniform(0.2, 1.2) * wash / wash.std()


@source("sustained")
def _frying(rng, num_samples):
    kernels = [dsp.click(rng, 2500, 7000) for _ in range(3)]
    return dsp.sprinkle(rng, num_samples, dsp.log_uniform(rng, 60, 250), kernels, 0.9)


@source("sustained")
def _crackle(rng, num_samples):
    pops = dsp.sprinkle(
        rng, num_samples, dsp.log_uniform(rng, 4, 35), [dsp.click(rng, 500, 5000) for _ in range(4)], 1.2
    )
    bed = dsp.colored_noise(rng, num_samples, 1.5)
    return pops / pops.std() + rng.uniform(0.0, 0.6) * bed / bed.std()


@source("sustained")
def _vinyl_dust(rng, num_samples):
    impulses = dsp.sprinkle(rng, num_samples, dsp.log_uniform(rng, 10, 80), [np.ones(1)], 1.0)
    return impulses / impulses.std() + 0.3 * dsp.band_noise(rng, num_samples, 100, 4000, 1)


@source("sustained")
def _bubbling(rng, num_samples):
    bubbles = []
    for _ in range(4):
        length = dsp.random_length(rng, 0.02, 0.1)
        bubbles.append(
            dsp.sine(dsp.glide(rng, length, *(dsp.log_uniform(rng, 300, 1500) * np.array([1, 1.7]))))
            * dsp.arch(length)
        )
    return dsp.sprinkle(rng, num_samples, dsp.log_uniform(rng, 8, 60), bubbles, 0.6)


@source("sustained")
def _tone_grains(rng, num_samples):
    grains = []
    for _ in range(5):
        length = dsp.random_length(rng, 0.02, 0.12)
        grains.append(dsp.sine(dsp.log_uniform(rng, 300, 5000), length) * dsp.arch(length))
    return dsp.sprinkle(rng, num_samples, dsp.log_uniform(rng, 10, 60), grains, 0.4)


@source("sustained")
def _gravel(rng, num_samples):
    grains = [dsp.noise(rng, 1600) * dsp.decay(1600, dsp.log_uniform(rng, 0.004, 0.03)) for _ in range(3)]
    crunch = dsp.sprinkle(rng, num_samples, dsp.log_uniform(rng, 15, 80), grains, 0.7)
    return dsp.apply_gain(crunch, dsp.band(dsp.log_uniform(rng, 200, 1500), 7000, 1))


@source("sustained")
def _scraping(rng, num_samples):
    roughness = np.abs(dsp.smooth_random(rng, num_samples, dsp.log_uniform(rng, 30, 150))) ** 2
    centers = dsp.log_uniform(rng, 800, 6000, 4)
    return dsp.apply_gain(roughness * dsp.noise(rng, num_samples), dsp.resonances(centers, centers * 0.15))


@source("paced")
def _sawing(rng, num_samples):
    stroke = dsp.sine(dsp.log_uniform(rng, 0.6, 3), num_samples, rng.random())
    teeth = 1 + dsp.sine(dsp.log_uniform(rng, 60, 250) * np.abs(stroke) + 1)
    center = dsp.log_uniform(rng, 1000, 3500)
    tilt = np.where(stroke > 0, 1.0, rng.uniform(0.3, 0.9))
    return np.abs(stroke) * tilt * teeth * dsp.band_noise(rng, num_samples, center / 2, center * 2, 2)


@source("sustained")
def _water_stream(rng, num_samples):
    blips = []
    for _ in range(6):
        length = dsp.random_length(rng, 0.004, 0.03)
        blips.append(dsp.sine(dsp.log_uniform(rng, 500, 4000), length) * dsp.arch(length))
    stream = dsp.sprinkle(rng, num_samples, dsp.log_uniform(rng, 200, 900), blips, 0.6)
    wash = dsp.band_noise(rng, num_samples, 400, 5000, 1)
    return stream / stream.std() + rng.uniform(0.1, 0.6) * wash / wash.std()

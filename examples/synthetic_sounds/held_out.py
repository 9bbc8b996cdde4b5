"""Sources that pretraining never sees."""

import numpy as np
from scipy import signal

from . import dsp
from .registry import source


@source("event", held_out=True)
def _cowbell(rng, num_samples):
    length = dsp.random_length(rng, 0.2, 0.5)
    frequency = dsp.log_uniform(rng, 450, 900)
    tones = [np.sign(dsp.sine(f, length)) for f in (frequency, frequency * rng.uniform(1.45, 1.52))]
    return dsp.apply_gain(sum(tones), dsp.band(400, 4000, 2)) * dsp.decay(length, rng.uniform(0.06, 0.15))


@source("event", held_out=True)
def _steel_pan(rng, num_samples):
    ratios = np.array([1.0, 2.0, 3.0, 4.1])
    length = dsp.random_length(rng, 0.3, 0.9)
    tone = dsp.modes(rng, length, dsp.log_uniform(rng, 250, 900) * ratios, [0.3, 0.2, 0.12, 0.08], [1, 0.8, 0.5, 0.3])
    return tone * (1 + 0.4 * dsp.sine(rng.uniform(5, 9), length))


@source("event", held_out=True)
def _croak(rng, num_samples):
    length = dsp.random_length(rng, 0.2, 0.6)
    curve = dsp.glide(rng, length, rng.uniform(25, 50), rng.uniform(50, 90))
    grains = np.exp(-rng.uniform(6, 12) * (dsp.phase(curve) % 1.0)).astype(np.float32)
    centers = np.array([rng.uniform(400, 900), rng.uniform(1200, 2500)])
    return dsp.apply_gain(grains * dsp.noise(rng, length), dsp.resonances(centers, centers * 0.15)) * dsp.arch(
        length, 0.4
    )


@source("event", held_out=True)
def _quack(rng, num_samples):
    length = dsp.random_length(rng, 0.12, 0.35)
    curve = dsp.glide(rng, length, rng.uniform(250, 350), rng.uniform(180, 260))
    centers = np.array([rng.uniform(900, 1300), rng.uniform(2300, 3000)])
    return dsp.apply_gain(dsp.voice(rng, curve, 0.0), dsp.resonances(centers, centers * 0.12)) * dsp.arch(length, 0.4)


@source("event", held_out=True)
def _cricket(rng, num_samples):
    length = dsp.random_length(rng, 0.15, 0.5)
    pulses = np.maximum(dsp.sine(rng.uniform(25, 60), length), 0)
    return dsp.sine(dsp.log_uniform(rng, 3500, 5500), length) * pulses * dsp.arch(length, 0.3)


@source("event", held_out=True)
def _zipper(rng, num_samples):
    length = dsp.random_length(rng, 0.25, 0.8)
    curve = dsp.glide(rng, length, rng.uniform(40, 80), rng.uniform(90, 200))
    impulses = np.diff(np.floor(dsp.phase(curve)), prepend=0).astype(np.float32)
    teeth = signal.oaconvolve(impulses, dsp.click(rng, 2500, 6000))[:length]
    return teeth + 0.1 * teeth.std() * dsp.noise(rng, length)


@source("event", held_out=True)
def _creak(rng, num_samples):
    length = dsp.random_length(rng, 0.3, 1.0)
    curve = np.abs(dsp.smooth_random(rng, length, 8, 30, 140))
    impulses = np.diff(np.floor(dsp.phase(curve)), prepend=0).astype(np.float32)
    centers = dsp.log_uniform(rng, 500, 3000, 3)
    return dsp.apply_gain(impulses, dsp.resonances(centers, centers * 0.06)) * dsp.arch(length, 0.3)


@source("event", held_out=True)
def _ring_modulated_tone(rng, num_samples):
    length = dsp.random_length(rng, 0.15, 0.6)
    frequency = dsp.log_uniform(rng, 500, 2500)
    return dsp.sine(frequency, length) * dsp.sine(frequency * rng.uniform(0.11, 0.37), length) * dsp.arch(length, 0.5)

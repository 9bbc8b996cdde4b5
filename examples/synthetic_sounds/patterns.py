"""Temporal patterns: gradual envelopes, and onsets of repeated events."""

import numpy as np

from . import dsp
from .registry import envelope, onsets


@envelope
def _steady(rng, num_samples):
    return np.ones(num_samples, dtype=np.float32)


@envelope
def _fade_in(rng, num_samples):
    ramp = np.linspace(0, 1, num_samples, dtype=np.float32)
    return ramp ** rng.uniform(0.8, 3)


@envelope
def _fade_out(rng, num_samples):
    ramp = np.linspace(1, 0, num_samples, dtype=np.float32)
    return ramp ** rng.uniform(0.8, 3)


@envelope
def _swell(rng, num_samples):
    return dsp.arch(num_samples, rng.uniform(1, 4))


@envelope
def _tremolo(rng, num_samples):
    depth = rng.uniform(0.5, 1.0)
    return 1 - depth * (0.5 + 0.5 * dsp.sine(dsp.log_uniform(rng, 2, 14), num_samples, rng.random()))


@envelope
def _fluctuating(rng, num_samples):
    return dsp.decibels(dsp.smooth_random(rng, num_samples, dsp.log_uniform(rng, 1, 8), -25, 0))


@onsets
def _single(rng, seconds):
    return np.array([rng.uniform(0.0, 0.75 * seconds)])


@onsets
def _two_events(rng, seconds):
    first = rng.uniform(0, 0.4 * seconds)
    return np.array([first, first + rng.uniform(0.15, 0.5) * seconds])


@onsets
def _slow_repeats(rng, seconds):
    return np.arange(rng.uniform(0, 0.5), seconds, rng.uniform(0.7, 1.6))


@onsets
def _fast_repeats(rng, seconds):
    return np.arange(rng.uniform(0, 0.2), seconds, rng.uniform(0.12, 0.4))


@onsets
def _irregular_repeats(rng, seconds):
    return np.sort(rng.uniform(0, 0.95 * seconds, rng.integers(4, 14)))


@onsets
def _accelerating_repeats(rng, seconds):
    gaps = rng.uniform(0.5, 1.0) * rng.uniform(0.75, 0.9) ** np.arange(30)
    times = rng.uniform(0, 0.5) + np.cumsum(np.maximum(gaps, 0.04))
    return times[times < seconds]


@onsets
def _clusters(rng, seconds):
    starts = np.arange(rng.uniform(0, 0.6), seconds, rng.uniform(1.0, 2.2))
    within = np.arange(rng.integers(3, 6)) * rng.uniform(0.1, 0.2)
    times = (starts[:, None] + within).ravel()
    return times[times < seconds]


@onsets(held_out=True)
def _decelerating_repeats(rng, seconds):
    gaps = rng.uniform(0.08, 0.2) * rng.uniform(1.12, 1.3) ** np.arange(30)
    times = rng.uniform(0, 0.4) + np.cumsum(gaps)
    return times[times < seconds]


@onsets(held_out=True)
def _pairs(rng, seconds):
    starts = np.arange(rng.uniform(0, 0.5), seconds, rng.uniform(0.9, 1.5))
    times = np.sort(np.concatenate([starts, starts + rng.uniform(0.2, 0.3)]))
    return times[times < seconds]

"""Generated sounds as log-mel features with labels."""

from dataclasses import dataclass

import numpy as np
import torch
from synthetic_sounds import (
    HELD_OUT_PATTERNS,
    HELD_OUT_SOURCES,
    PATTERNS,
    SAMPLING_RATE,
    SOURCES,
    compatible_patterns,
    generate,
    generate_any,
)
from tqdm.auto import tqdm
from transformers.audio_utils import mel_filter_bank, window_function


MAX_LENGTH = 512
NUM_MEL_BINS = 64
LOG_FLOOR = float(np.log(1.192092955078125e-07))  # what the feature extractor gives for digital silence
LABELS = tuple(SOURCES) + tuple(f"pattern: {name}" for name in PATTERNS)


class LogMel:
    """The log-mel features of `ASTFeatureExtractor` without its normalization, several times as fast."""

    def __init__(self, num_mel_bins: int = NUM_MEL_BINS, max_length: int = MAX_LENGTH):
        self.max_length = max_length
        self.window = window_function(400, "hann", periodic=False)
        self.filters = mel_filter_bank(
            num_frequency_bins=257,
            num_mel_filters=num_mel_bins,
            min_frequency=20,
            max_frequency=SAMPLING_RATE // 2,
            sampling_rate=SAMPLING_RATE,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )

    def __call__(self, waveform: np.ndarray) -> tuple[np.ndarray, int]:
        """Features (max_length, num_mel_bins), float32, zero where the clip has ended, and the number of frames it
        lasts, for a waveform (num_samples,) at 16 kHz."""
        frames = np.lib.stride_tricks.sliding_window_view(waveform.astype(np.float64), 400)[::160]
        frames = frames[: self.max_length]
        frames = frames - frames.mean(axis=1, keepdims=True)
        emphasized = frames - 0.97 * np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
        power = np.abs(np.fft.rfft(emphasized * self.window, 512)) ** 2
        features = np.zeros((self.max_length, self.filters.shape[1]), dtype=np.float32)
        features[: len(frames)] = np.log(np.maximum(power @ self.filters, np.exp(LOG_FLOOR)))
        return features, len(frames)


@dataclass
class Clips:
    """Generated clips as tensors: features (n, 512, 64) float16, frames (n,), labels (n, labels) bool."""

    features: torch.Tensor
    frames: torch.Tensor
    labels: torch.Tensor

    def __len__(self):
        return len(self.frames)

    def statistics(self) -> tuple[float, float]:
        """Mean and standard deviation of the features of all frames that belong to a clip."""
        total = squares = count = 0.0
        for features, frames in zip(self.features.split(512), self.frames.split(512)):
            values = features[torch.arange(MAX_LENGTH) < frames[:, None]].double()
            total, squares, count = total + values.sum(), squares + values.square().sum(), count + values.numel()
        mean = total / count
        return float(mean), float((squares / count - mean**2).sqrt())


def pretraining_sound(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A waveform of pretraining sources and its multi-hot labels (labels,)."""
    sound = generate_any(rng)
    return sound.waveform, np.isin(LABELS, (sound.source, f"pattern: {sound.pattern}"))


def held_out_sound(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A waveform of held-out sources and its one-hot label (held-out sources,)."""
    source = rng.choice(tuple(HELD_OUT_SOURCES)).item()
    pattern = rng.choice(compatible_patterns(source, tuple(PATTERNS) + tuple(HELD_OUT_PATTERNS))).item()
    return generate(source, pattern, rng).waveform, np.isin(tuple(HELD_OUT_SOURCES), source)


def generate_clips(make_sound, num_clips: int, seed: int, description: str) -> Clips:
    """`num_clips` sounds as features; clip i depends on the seed and on i only."""
    log_mel = LogMel()
    features = torch.empty(num_clips, MAX_LENGTH, NUM_MEL_BINS, dtype=torch.float16)
    frames, labels = [], []
    for index in tqdm(range(num_clips), desc=description, mininterval=2):
        waveform, label = make_sound(np.random.default_rng([seed, index]))
        values, length = log_mel(waveform)
        features[index] = torch.from_numpy(values)
        frames.append(length)
        labels.append(label)
    return Clips(features, torch.tensor(frames), torch.from_numpy(np.stack(labels)))

"""Clips with tones from here to there, a metadata.csv of these events, and tiny models for labels of frames."""

import functools

import numpy as np
import soundfile
import torch
import transformers
from sounds import EXTRACTORS, FREQUENCIES
from tasks import PREFIXES
from tiny import ARCHITECTURES, HIDDEN_SIZE, NUM_LAYERS


RATE = 16000
# Frames of 5 ms, instead of less than 2, so that a clip has few of them.
COARSE = {"conv_stride": (8, 10), "conv_kernel": (16, 20)}
FRAME_TYPES = [
    name for name, prefix in PREFIXES.items() if hasattr(transformers, f"{prefix}ForAudioFrameClassification")
]


def sound(events, seconds=0.4, seed=0):
    """Noise with tones: `events` are pairs of a label and its (start, stop)."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    wave = 0.02 * rng.normal(size=time.size)
    for label, (start, stop) in events:
        within = (time >= start) & (time < stop)
        wave[within] += 0.3 * np.sin(2 * np.pi * FREQUENCIES[label] * time[within] + rng.uniform(0, 6))
    return wave.astype(np.float32)


def drawn_events(seed, seconds=0.4):
    """A low and a high tone, which may overlap; no event in every fifth clip."""
    rng = np.random.default_rng(seed)
    starts = rng.uniform(0, 0.5 * seconds, size=2).round(3)
    lengths = rng.uniform(0.2 * seconds, 0.45 * seconds, size=2).round(3)
    pairs = [(float(a), float(round(a + b, 3))) for a, b in zip(starts, lengths, strict=True)]
    return [] if seed % 5 == 4 else list(zip(("low", "high"), pairs, strict=True))


def write_events(folder, clips=6, tested=2, seconds=0.4):
    """Clips with drawn events and their metadata.csv; the last `tested` of them test, at half the length."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["file_name,label,start,stop,split"]
    for index in range(clips):
        length, split = (0.5 * seconds, "test") if index >= clips - tested else (seconds, "train")
        events = drawn_events(index, length)
        soundfile.write(folder / f"{index}.wav", sound(events, length, index), RATE)
        rows = [f"{label},{start},{stop}" for label, (start, stop) in events] or [",,"]
        lines += [f"{index}.wav,{row},{split}" for row in rows]
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def save_bare(folder, backbone="wav2vec2", **overrides):
    """A tiny bare encoder with its feature extractor, as a pretrained model is published."""
    config_name, _, encoder_name, options = ARCHITECTURES[backbone]
    sizes = {"hidden_size": HIDDEN_SIZE, "num_hidden_layers": NUM_LAYERS, "apply_spec_augment": False}
    coarse = {} if backbone == "wav2vec2-bert" else COARSE
    config = getattr(transformers, config_name)(**{**options, **sizes, **coarse, **overrides})
    torch.manual_seed(0)
    getattr(transformers, encoder_name)(config).save_pretrained(folder)
    waveforms = functools.partial(transformers.Wav2Vec2FeatureExtractor, return_attention_mask=True)
    EXTRACTORS.get(backbone, waveforms)().save_pretrained(folder)
    return str(folder)

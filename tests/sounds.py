"""Small data sets of tones, and tiny models saved with their feature extractors, for the tests of the examples."""

import functools

import numpy as np
import soundfile
from tiny import make
from transformers import (
    ASTFeatureExtractor,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)


LABELS = ("high", "low", "middle")
FREQUENCIES = {"high": 4000, "low": 250, "middle": 1000}

# Of the sizes that the tiny models take; all others read waveforms.
EXTRACTORS = {
    "ast": functools.partial(ASTFeatureExtractor, num_mel_bins=36, max_length=46),
    "wav2vec2-bert": functools.partial(SeamlessM4TFeatureExtractor, feature_size=6, num_mel_bins=6),
    "whisper": functools.partial(WhisperFeatureExtractor, feature_size=12, chunk_length=1),
}
# Whisper's extractor knows whole seconds alone.
OVERRIDES = {"whisper": {"max_source_positions": 50}}


def tone(label, seconds=0.5, rate=16000, seed=0):
    """A tone of the label's frequency in noise, float32, shape (samples,)."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * FREQUENCIES[label] * time + rng.uniform(0, 6))
    return (wave + 0.02 * rng.normal(size=time.size)).astype(np.float32)


def write_tones(folder, clips=12, folds=3, columns="file_name,label,fold"):
    """`clips` files and a metadata.csv; labels in turn, each fold with all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [columns]
    for index in range(clips):
        label = LABELS[index % len(LABELS)]
        soundfile.write(folder / f"{index:02d}.wav", tone(label, seed=index), 16000)
        values = {"file_name": f"{index:02d}.wav", "label": label, "fold": str(index // len(LABELS) % folds + 1)}
        lines.append(",".join(values[name] for name in columns.split(",")))
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def save_model(folder, architecture, **overrides):
    """A tiny model of this architecture (see `tiny.make`) with its feature extractor. Returns the folder's name."""
    make(architecture, **OVERRIDES.get(architecture, {}) | overrides).save_pretrained(folder)
    waveforms = functools.partial(Wav2Vec2FeatureExtractor, return_attention_mask=True)
    EXTRACTORS.get(architecture, waveforms)().save_pretrained(folder)
    return str(folder)


def save_ast(folder, **overrides):
    return save_model(folder, "ast", **overrides)


def save_wav2vec2(folder, **overrides):
    return save_model(folder, "wav2vec2", **overrides)

"""Small data sets of tones, and tiny models saved with their feature extractors, for the tests of the examples."""

import numpy as np
import soundfile
from tiny import make_ast, make_wav2vec2
from transformers import ASTFeatureExtractor, Wav2Vec2FeatureExtractor


LABELS = ("high", "low", "middle")
FREQUENCIES = {"high": 4000, "low": 250, "middle": 1000}


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


def save_ast(folder, **overrides):
    make_ast(**overrides).save_pretrained(folder)
    ASTFeatureExtractor(num_mel_bins=36, max_length=46).save_pretrained(folder)
    return str(folder)


def save_wav2vec2(folder, **overrides):
    make_wav2vec2(**overrides).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    return str(folder)

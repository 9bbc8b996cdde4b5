"""The README and the pages of the site, their blocks of Python, and stand-ins for what a reader has: models of the Hub, recordings."""

import re
import shutil
from pathlib import Path

import huggingface_hub
import speech
from sounds import write_tones
from tiny import make
from transformers import ASTFeatureExtractor, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor


ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = {"README.md": README} | {str(path.relative_to(DOCS)): path for path in sorted(DOCS.rglob("*.md"))}
BLOCK = re.compile(r"^( *)```python\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
COMMIT = "0" * 40


def python_blocks(text):
    """The code of a page's blocks, each with the line that it starts in."""
    for block in BLOCK.finditer(text):
        indent = len(block[1])
        code = "\n".join(line[indent:] for line in block[2].splitlines())
        yield text[: block.start()].count("\n") + 2, code


def save_ast(folder):
    sizes = {"max_length": 1024, "num_mel_bins": 128, "frequency_stride": 16, "time_stride": 16}
    make("ast", **sizes, num_hidden_layers=2).save_pretrained(folder)
    ASTFeatureExtractor().save_pretrained(folder)


def save_wav2vec2(folder):
    make("wav2vec2", bare=True).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)


def save_whisper(folder):
    speech.save_whisper(folder, max_source_positions=1500)
    WhisperFeatureExtractor(feature_size=12, chunk_length=30).save_pretrained(folder)


def save_vit(folder):
    make("vit", image_size=224, patch_size=16).save_pretrained(folder)


STAND_INS = {
    "MIT/ast-finetuned-audioset-10-10-0.4593": save_ast,
    "facebook/wav2vec2-base": save_wav2vec2,
    "google/vit-base-patch16-224": save_vit,
    "openai/whisper-tiny.en": save_whisper,
}


def fill_cache(folder):
    """Put the stand-ins into a cache of the Hub, as if they had been fetched."""
    for name, save in STAND_INS.items():
        repository = folder / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(COMMIT)
        save(repository / "snapshots" / COMMIT)


def prepare(folder):
    """What a reader has, in `folder`: a cache of the Hub, recordings with labels, and transcribed ones."""
    fill_cache(folder / "cache")
    write_tones(folder / "reader" / "recordings", clips=12)
    speech.write_transcribed(folder / "reader" / "transcribed")
    return folder


def become_reader(prepared, folder, monkeypatch):
    """Work in `folder`, with a copy of what was prepared."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(prepared / "cache"))
    shutil.copytree(prepared / "reader", folder, dirs_exist_ok=True)
    monkeypatch.chdir(folder)

"""Parts that the model cards of this package's adapters and of all other models have in common."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from ..upstream.model_cards import is_hub_id
from ..utils.validation import is_integer
from .base_settings import AUTO_CLASS, PROBLEM_TYPE, labels_of


PREPROCESSOR_NAME = "preprocessor_config.json"
FRAMES, XVECTORS = "AutoModelForAudioFrameClassification", "AutoModelForAudioXVector"


def plain(text: Any) -> str:
    """Return text of strangers (labels, names, values) so that it stands in one line of Markdown as it is."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(str(text).split()))


def code_span(text: Any) -> str:
    """Return text of strangers as code within a line of Markdown."""
    return "`" + " ".join(str(text).replace("`", "'").split()) + "`"


def code_block(language: str, code: str) -> str:
    """Return a block of code in Markdown, whatever the code contains."""
    fence = "```"
    while fence in code:
        fence += "`"
    return f"{fence}{language}\n{code}\n{fence}"


def sampling_rate_of(preprocessor: Optional[Mapping[str, Any]]) -> Optional[int]:
    """Return the sampling rate in the fields of a feature extractor, None where there is none."""
    rate: Any = (preprocessor or {}).get("sampling_rate")
    return rate if is_integer(rate) and rate > 0 else None


def read_preprocessor(file: Path) -> Optional[dict[str, Any]]:
    """Return the fields of a feature extractor, None if the file has none; it warns of one that cannot be read."""
    if not file.is_file():
        return None
    try:
        fields = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        warnings.warn(f"{file} cannot be read ({error}): the model card leaves it out.", stacklevel=2)
        return None
    return fields if isinstance(fields, dict) else None


def hub_id(name: Optional[str]) -> Optional[str]:
    """Return the name of a model if it is an id on the Hub, None for a local one."""
    return name if name and is_hub_id(name) and not os.path.exists(name) else None


def is_multi_label(settings: Mapping[str, Any]) -> bool:
    """Return whether a clip, or a frame, can have several labels, from the base-model settings."""
    return settings.get(PROBLEM_TYPE) == "multi_label_classification"


def input_text(settings: Mapping[str, Any], sampling_rate: Optional[int]) -> str:
    """Return the lines on the input and the labels of an audio classifier, from its base-model settings."""
    rate = f" at {sampling_rate} Hz" if sampling_rate else ""
    frames = settings.get("max_length")
    length = f", cut or padded to {frames} frames of 10 ms" if frames else ""
    labels = labels_of(dict(settings))
    several = ", several at a time" if is_multi_label(settings) else ""
    names = ", ".join(plain(labels[index]) for index in sorted(labels))
    return f"- Input: mono audio{rate}{length}.\n- Labels ({len(labels)}{several}): {names}.\n"


def transcribe_a_file(folder: str, generates: bool) -> list[str]:
    """Return the lines of code that write what is said in a file with `model`.

    Args:
        folder: the expression for the folder with the processor.
        generates: whether the model writes with a decoder, or by CTC.
    """
    recognize = "model.generate(**inputs)" if generates else "model(**inputs).logits.argmax(-1)"
    special = ", skip_special_tokens=True" if generates else ""
    return [
        f"processor = AutoProcessor.from_pretrained({folder})",
        "",
        'waveform, rate = librosa.load("clip.wav", sr=processor.feature_extractor.sampling_rate)',
        'inputs = processor.feature_extractor(waveform, sampling_rate=rate, return_tensors="pt")',
        "with torch.no_grad():",
        f"    tokens = {recognize}",
        f"print(processor.tokenizer.batch_decode(tokens{special})[0].strip())",
    ]


def hear_a_file(extractor: str, settings: Mapping[str, Any]) -> list[str]:
    """Return the lines of code that tell what `model` hears in a file: labels, labels of frames, or an embedding.

    Args:
        extractor: the feature extractor's arguments.
        settings: the base-model settings.
    """
    lines = [
        f"feature_extractor = AutoFeatureExtractor.from_pretrained({extractor})",
        "",
        'waveform, rate = librosa.load("clip.wav", sr=feature_extractor.sampling_rate)',
        'inputs = feature_extractor(waveform, sampling_rate=rate, return_tensors="pt")',
        "with torch.no_grad():",
    ]
    if settings.get(AUTO_CLASS) == XVECTORS:
        lines += ["    embedding = model(**inputs).embeddings[0]"]
        return [*lines, "print(embedding.shape)  # the cosine of two says whether the voices are alike"]
    lines += ["    logits = model(**inputs).logits"]
    if settings.get(AUTO_CLASS) == FRAMES:
        lines += ["hop = len(waveform) / rate / logits.shape[1]  # seconds", "for frame, row in enumerate(logits[0]):"]
        lines += ["    labels = [model.config.id2label[index] for index in (row > 0).nonzero().flatten().tolist()]"]
        return [*lines, '    print(f"{frame * hop:.2f}", *labels)']
    if is_multi_label(settings):
        lines += ["for index, score in enumerate(logits[0].sigmoid().tolist()):"]
        return [*lines, '    print(f"{score:.2f} {model.config.id2label[index]}")']
    return [*lines, "print(model.config.id2label[logits.argmax(-1).item()])"]

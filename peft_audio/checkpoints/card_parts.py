"""Parts that the model cards of this package's adapters and of all other models have in common."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Optional

from ..upstream.model_cards import is_hub_id
from .base_settings import PROBLEM_TYPE, labels_of


PREPROCESSOR_NAME = "preprocessor_config.json"


def hub_id(name: Optional[str]) -> Optional[str]:
    """Return the name of a model if it is an id on the Hub, None for a local one."""
    return name if name and is_hub_id(name) and not os.path.exists(name) else None


def is_multi_label(settings: Mapping[str, Any]) -> bool:
    """Return whether a clip can have several labels, from the base-model settings."""
    return settings.get(PROBLEM_TYPE) == "multi_label_classification"


def input_text(settings: Mapping[str, Any], sampling_rate: Optional[int]) -> str:
    """Return the lines on the input and the labels of an audio classifier, from its base-model settings."""
    rate = f" at {sampling_rate} Hz" if sampling_rate else ""
    frames = settings.get("max_length")
    length = f", cut or padded to {frames} frames of 10 ms" if frames else ""
    labels = labels_of(dict(settings))
    several = ", several at a time" if is_multi_label(settings) else ""
    names = ", ".join(labels[index] for index in sorted(labels))
    return f"- Input: mono audio{rate}{length}.\n- Labels ({len(labels)}{several}): {names}.\n"


def classify_a_file(extractor: str, multi_label: bool) -> list[str]:
    """Return the lines of code that classify a file with `model`; `extractor` are the feature extractor's arguments."""
    lines = [
        f"feature_extractor = AutoFeatureExtractor.from_pretrained({extractor})",
        "",
        'waveform, rate = librosa.load("clip.wav", sr=feature_extractor.sampling_rate)',
        'inputs = feature_extractor(waveform, sampling_rate=rate, return_tensors="pt")',
        "with torch.no_grad():",
        "    logits = model(**inputs).logits",
    ]
    if multi_label:
        lines += ["for index, score in enumerate(logits[0].sigmoid().tolist()):"]
        return [*lines, '    print(f"{score:.2f} {model.config.id2label[index]}")']
    return [*lines, "print(model.config.id2label[logits.argmax(-1).item()])"]

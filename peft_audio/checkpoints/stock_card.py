"""The model card of what this package does not save by itself: whole models, and adapters of PEFT's own types."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Union, cast

from huggingface_hub import ModelCard, ModelCardData
from peft import PeftModel
from transformers import PreTrainedModel

from ..ast.resize import RESIZES
from ..backbones.table import resolve
from ..whisper.resize import POSITIONS, TOKENS_PER_SECOND
from .base_settings import AUTO_CLASS, HEAD, labels_of, read_settings
from .card_parts import (
    FRAMES,
    PREPROCESSOR_NAME,
    XVECTORS,
    code_block,
    hear_a_file,
    hub_id,
    input_text,
    plain,
    sampling_rate_of,
    transcribe_a_file,
)


RECOGNIZERS = ("AutoModelForCTC", "AutoModelForSpeechSeq2Seq")
# What a model is, and its task on the Hub, by auto class.
RECOGNIZER = ("A recognizer of speech", "automatic-speech-recognition")
KINDS = {
    **dict.fromkeys(RECOGNIZERS, RECOGNIZER),
    FRAMES: ("A classifier of audio frames", None),
    XVECTORS: ("A model for speaker embeddings", None),
}
CLASSIFIER = ("An audio classifier", "audio-classification")
WEIGHTS = ("adapter_model*.safetensors", "model*.safetensors")
# Fields of a PEFT configuration that do not say how the method is set up.
NOT_OF_THE_METHOD = (
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_type",
    "peft_version",
    "task_type",
)


def stock_card(folder: Path, model: Union[PeftModel, PreTrainedModel], location: str, training: str) -> ModelCard:
    """Make the model card of a model that was saved in `folder`.

    Args:
        folder: the folder with the weights and the feature extractor.
        model: the trained model.
        location: what the code in the model card loads, a path or an id on the Hub.
        training: Markdown about training and results.

    Raises:
        FileNotFoundError: if the folder has no weights or no feature extractor.
        ValueError: if the model type is not supported.
    """
    is_adapter = isinstance(model, PeftModel)
    base = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
    settings = read_settings(base, resolve(base).spec)
    auto_class = settings.get(AUTO_CLASS, "")
    kind, task = KINDS.get(auto_class, CLASSIFIER)
    hub_base, base_name = hub_id(base.name_or_path), Path(base.name_or_path or "unnamed").name
    data = ModelCardData(
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag=task,
        base_model=hub_base,  # metadata that names a folder would make a push to the Hub fail
        tags=["audio", "peft-audio"],
    )
    preprocessor = json.loads((folder / PREPROCESSOR_NAME).read_text("utf-8"))
    text = f"""# {plain(Path(location).name)}

{kind}: `{hub_base or base_name}`, fine-tuned.

## Use

{code_block("python", (_recognize if auto_class in RECOGNIZERS else _snippet)(base, settings, location, is_adapter))}

{"" if auto_class in (*RECOGNIZERS, XVECTORS) else input_text(settings, sampling_rate_of(preprocessor))}{_method(model) if isinstance(model, PeftModel) else ""}- file: {_size(folder)}

{training}
"""
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}", ignore_metadata_errors=True)


def _size(folder: Path) -> str:
    sizes = [file.stat().st_size for pattern in WEIGHTS for file in folder.glob(pattern)]
    if not sizes:
        raise FileNotFoundError(f"There are no weights in {str(folder)!r}: save_pretrained comes first.")
    return f"{sum(sizes) / 1e6:.3f} MB"


def _method(model: PeftModel) -> str:
    """Return the lines on the fields of the adapter's configuration that differ from their defaults."""
    config = model.peft_config[model.active_adapter]
    defaults = {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(config)
    }
    values = {
        name: value for name, value in vars(config).items() if name in defaults and name not in NOT_OF_THE_METHOD
    }
    changed = {name: value for name, value in values.items() if value not in (None, defaults[name])}
    lines = [f"- method: {type(config).__name__}"]
    for name, value in changed.items():
        lines.append(f"- `{name}`: {', '.join(sorted(value)) if isinstance(value, (set, list)) else value}")
    return "\n".join(lines) + "\n"


def _recognize(base: PreTrainedModel, settings: dict[str, Any], location: str, is_adapter: bool) -> str:
    name, head = type(base).__name__, settings.get(HEAD) or {}
    fields = "".join(f", {field}={head[field]!r}" for field in ("vocab_size", "pad_token_id") if field in head)
    seconds = settings.get(POSITIONS, 0) / TOKENS_PER_SECOND
    loading = [f"model = {name}.from_pretrained(location)"]
    if is_adapter:
        loading = [
            f"base = {name}.from_pretrained({base.name_or_path!r}{fields}{', ignore_mismatched_sizes=True' * bool(fields)})",
            *([f"resize_whisper(base, max_seconds={seconds:g})"] * bool(seconds)),
            "model = PeftModel.from_pretrained(base, location)",
        ]
    lines = [
        *("import librosa", "import torch"),
        *(["from peft import PeftModel"] * is_adapter),
        f"from transformers import AutoProcessor, {name}",
        *(["from peft_audio import resize_whisper"] * (is_adapter and bool(seconds))),
        *("", f"location = {location!r}", *loading, "model.eval()"),
    ]
    return "\n".join([*lines, *transcribe_a_file("location", settings[AUTO_CLASS] == RECOGNIZERS[1])])


def _snippet(base: PreTrainedModel, settings: dict[str, Any], location: str, is_adapter: bool) -> str:
    labels = labels_of(settings)
    resize = {name: settings[name] for name in ("max_length", "time_stride", "frequency_stride") if name in settings}
    is_resized = is_adapter and bool(settings.get(RESIZES))
    name = type(base).__name__
    if is_adapter:
        loading = [
            f"labels = {[labels[index] for index in sorted(labels)]!r}",
            f"base = {name}.from_pretrained(",
            f"    {base.name_or_path!r}, id2label=dict(enumerate(labels)), ignore_mismatched_sizes=True",
            ")",
            *([f"resize_ast(base, {', '.join(f'{key}={value}' for key, value in resize.items())})"] * is_resized),
            "model = PeftModel.from_pretrained(base, location)",
        ]
    else:
        loading = [f"model = {name}.from_pretrained(location)"]
    lines = [
        *("import librosa", "import torch"),
        *(["from peft import PeftModel"] * is_adapter),
        f"from transformers import AutoFeatureExtractor, {name}",
        *(["from peft_audio import resize_ast"] * is_resized),
        *("", f"location = {location!r}", *loading, "model.eval()"),
    ]
    return "\n".join([*lines, *hear_a_file("location", settings)])

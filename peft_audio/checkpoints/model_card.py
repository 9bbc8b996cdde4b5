"""The model card (README.md) of an adapter: how to use it, what it is, its training data and its scores."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

from huggingface_hub import ModelCard, ModelCardData
from peft import PeftConfig, PeftModel, load_peft_weights
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from transformers import PreTrainedModel
from yaml import YAMLError

from ..config import EncoderAdapterConfig
from ..upstream.auto_classes import SPEECH_TASKS
from ..upstream.model_cards import PEFT_TEMPLATE_MARK, default_sampling_rate
from ..utils.atomic_files import written_together
from ..utils.validation import is_number, require
from .base_settings import AUTO_CLASS, labels_of
from .card_parts import (
    FRAMES,
    PREPROCESSOR_NAME,
    XVECTORS,
    code_block,
    code_span,
    hear_a_file,
    hub_id,
    input_text,
    plain,
    read_preprocessor,
    sampling_rate_of,
    transcribe_a_file,
)
from .card_results import CLASSIFICATION, TASKS, Score, eval_results, metric_types
from .stock_card import stock_card


CARD_NAME = "README.md"
# The package rewrites the parts between these comments. Everything else in the text is the user's.
ADAPTER, TRAINING = "adapter", "training"
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
METHOD_TAG = "peft-audio:"
TOKENIZER_NAME = "tokenizer_config.json"


@dataclass(frozen=True)
class CardFacts:
    """What the files in an adapter's folder say about it.

    Attributes:
        config: the adapter's configuration.
        location: its folder or its id on the Hub, for the code that loads it.
        num_bytes: size of the file with the weights.
        num_parameters: number of trained parameters in that file, so without the statistics of batch norms.
        preprocessor: the feature extractor's fields; None if the folder has no feature extractor.
        has_tokenizer: whether the folder has a tokenizer.
    """

    config: EncoderAdapterConfig
    location: str
    num_bytes: int
    num_parameters: int
    preprocessor: Optional[dict[str, Any]]
    has_tokenizer: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """The base-model settings."""
        return self.config.base_settings or {}

    @property
    def base_class(self) -> str:
        """Name of the base model's class, empty if the configuration does not have it."""
        mapping = self.config.auto_mapping
        name = mapping.get("base_model_class") if isinstance(mapping, dict) else None
        return name if isinstance(name, str) and name.isidentifier() else ""  # it becomes a line of code

    @property
    def is_audio_classifier(self) -> bool:
        """Whether the model with its adapter classifies audio, rather than images or nothing."""
        if self.settings.get(AUTO_CLASS) not in (None, "AutoModelForAudioClassification"):
            return False
        is_classifier = not self.base_class or "Classification" in self.base_class
        return is_classifier and bool(labels_of(self.settings)) and "image_size" not in self.settings

    @property
    def hears_files(self) -> bool:
        """Whether the model with its adapter classifies audio, labels its frames or makes embeddings of it."""
        return self.is_audio_classifier or self.settings.get(AUTO_CLASS) in (FRAMES, XVECTORS)

    @property
    def has_labels(self) -> bool:
        """Whether the labels belong in the card; those of an x-vector head are only the voices it was trained on."""
        return self.hears_files and bool(labels_of(self.settings)) and self.settings.get(AUTO_CLASS) != XVECTORS

    @property
    def hub_base_model(self) -> Optional[str]:
        """The base model's id on the Hub; None for a local one, so that no private path is published."""
        return hub_id(self.config.base_model_name_or_path)

    @property
    def sampling_rate(self) -> Optional[int]:
        """Sampling rate of the input in Hz; None if neither the folder nor the base model's class gives one."""
        if self.preprocessor is not None:
            return sampling_rate_of(self.preprocessor)
        return default_sampling_rate(self.base_class)


def write_card(
    folder: Union[str, os.PathLike],
    *,
    model: Union[PeftModel, PreTrainedModel, None] = None,
    location: Optional[str] = None,
    training: str = "",
    results: Optional[Mapping[str, Score]] = None,
    metadata: Optional[Mapping[str, Any]] = None,
) -> None:
    """Write the model card of an adapter of this package, and keep what a person wrote into an earlier one.

    With `model` it also writes a new model card for a whole model or an adapter of one of PEFT's own types.

    Args:
        folder: the folder, with the weights. For `model` to be used, a feature extractor has to be there as well.
        model: the trained model, if it is not an adapter of this package: other files do not say labels and input.
        location: what the code in the model card loads, a path or an id on the Hub; None for the folder's name.
        training: Markdown about the data and the training; without it and `results` that part stays as it was.
        results: scores by name of the metric, each a number or (mean, standard deviation); for the Hub's tables too.
        metadata: fields of the model card's metadata to set, such as `datasets` and `license`; `tags` are added.

    Raises:
        FileNotFoundError: if the folder lacks weights, or a feature extractor or `model` where they are needed.
        ValueError: if `training` is not text, `results` are not scores, or the model type is not supported.

    Examples:
        >>> base_model = ASTForAudioClassification(ASTConfig(hidden_size=12, num_hidden_layers=1))
        >>> get_peft_model(base_model, peft_audio.EmbeddingPromptConfig()).save_pretrained("adapter")
        >>> peft_audio.write_card("adapter", training="50 epochs on ESC-50.", results={"accuracy": 0.95})
        >>> "| accuracy | 0.9500 |" in Path("adapter", "README.md").read_text()
        True
    """
    _check_texts(training, results)
    folder = Path(folder)
    name, fields = location or folder.resolve().name, dict(metadata or {})
    card = _make_card(folder, model, name, training_text(training, results), fields.pop("tags", ()))
    _set_metadata(card.data, fields, results or {}, name)
    with written_together(folder) as staged:
        card.save(staged / CARD_NAME)


def _set_metadata(data: Any, fields: Mapping[str, Any], results: Mapping[str, Score], name: str) -> None:
    for field, value in fields.items():
        setattr(data, field, value)
    if not results:
        return
    task = data.pipeline_tag or CLASSIFICATION
    data.model_name, data.eval_results = Path(name).name, eval_results(results, task, data.datasets)
    data.metrics = data.metrics or metric_types(results)


def _make_card(
    folder: Path, model: Union[PeftModel, PreTrainedModel, None], location: str, text: str, tags: Iterable[str]
) -> ModelCard:
    facts = read_facts(folder, location)
    if facts is not None:
        return updated_card(load_card(folder), facts, text, tags)
    if model is None:
        raise FileNotFoundError(f"There is no adapter of peft_audio in {str(folder)!r}: save_pretrained comes first.")
    card = stock_card(folder, model, location, text)
    data: Any = card.data
    data.tags = sorted({*data.tags, *tags})
    return card


def _check_texts(training: Any, results: Any) -> None:
    require(isinstance(training, str), "training", "Markdown", training)
    is_table = results is None or isinstance(results, Mapping)
    are_scores = is_table and all(_is_score(score) for score in (results or {}).values())
    require(are_scores, "results", "a dictionary of numbers or (mean, spread) by name", results)


def read_facts(folder: Path, location: str, beside: Optional[Path] = None) -> Optional[CardFacts]:
    """Read what the files of an adapter say about it.

    Args:
        folder: the folder with the adapter.
        location: what code loads the adapter from, a path or an id on the Hub.
        beside: another folder that may have the feature extractor.

    Returns:
        None if the folder has no adapter of this package.
    """
    weights = [folder / name for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME) if (folder / name).is_file()]
    if not weights or not (folder / CONFIG_NAME).is_file():
        return None
    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, EncoderAdapterConfig):
        return None
    places = [place / PREPROCESSOR_NAME for place in (folder, beside) if place is not None]
    preprocessor = next((fields for fields in map(read_preprocessor, places) if fields is not None), None)
    size, has_tokenizer = weights[0].stat().st_size, (folder / TOKENIZER_NAME).is_file()
    return CardFacts(config, location, size, _count_parameters(folder), preprocessor, has_tokenizer)


def _count_parameters(folder: Path) -> int:
    tensors = load_peft_weights(str(folder), device="cpu")
    return sum(tensor.numel() for key, tensor in tensors.items() if not key.endswith(STATISTICS))


def load_card(folder: Path) -> Optional[ModelCard]:
    """Return the model card in the folder, None if there is none.

    Raises:
        ValueError: if it is not text in UTF-8.
    """
    file = folder / CARD_NAME
    if not file.is_file():
        return None
    try:
        text = file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"The model card {str(file)!r} is not text in UTF-8 ({error}). Convert or move it."
        ) from error
    try:
        return ModelCard(text, ignore_metadata_errors=True)
    except (YAMLError, ValueError):  # metadata that cannot be read is kept as text
        return ModelCard(f"---\n{{}}\n---\n\n{text}", ignore_metadata_errors=True)


def updated_card(
    card: Optional[ModelCard], facts: CardFacts, training: str = "", tags: Iterable[str] = ()
) -> ModelCard:
    """Return a model card with the parts and metadata of this package rewritten.

    Args:
        card: the model card so far; None if there is none yet.
        facts: what the adapter's files say about it.
        training: Markdown for the part on training and results; an empty text leaves that part as it is.
        tags: more tags, from an earlier model card.
    """
    text = "" if card is None or PEFT_TEMPLATE_MARK in card.text else card.text
    text = _with_part(text, ADAPTER, _adapter_text(facts))
    if training:
        text = _with_part(text, TRAINING, training)
    data = (ModelCardData() if card is None else card.data).to_dict()
    own: dict[str, Any] = {"library_name": "peft", "base_model": facts.hub_base_model}
    task = CLASSIFICATION if facts.is_audio_classifier else TASKS.get(facts.settings.get(AUTO_CLASS, ""))
    if task is not None:
        own["pipeline_tag"] = data.get("pipeline_tag") or task
    kept = [tag for tag in [*tags, *tags_of(card)] if not tag.startswith(("base_model:", METHOD_TAG))]
    wanted = ["audio", "peft-audio", "transformers", METHOD_TAG + facts.config.method_name]
    if facts.hub_base_model:
        wanted.append(f"base_model:adapter:{facts.hub_base_model}")
    data |= own | {"tags": sorted({*kept, *wanted})}
    if data["base_model"] is None:
        del data["base_model"]
    return ModelCard(f"---\n{ModelCardData(**data).to_yaml()}\n---\n\n{text.strip()}\n", ignore_metadata_errors=True)


def tags_of(card: Optional[ModelCard]) -> tuple[str, ...]:
    """Return the tags in a model card's metadata, as text; a single one may stand alone."""
    tags = None if card is None else card.data.to_dict().get("tags")
    tags = tags if isinstance(tags, list) else [tags]
    return tuple(str(tag) for tag in tags if isinstance(tag, (str, int, float)) and tag != "")


def _with_part(text: str, name: str, content: str) -> str:
    begin, end = f"<!-- peft_audio: {name} -->", f"<!-- peft_audio: end of {name} -->"
    content = content.strip().replace("<!-- peft_audio:", "&lt;!-- peft_audio:")  # in what strangers wrote
    part = f"{begin}\n\n{content}\n\n{end}"
    # From the last beginning in front of an end: one whose end a person has removed is part of that person's text.
    pattern = f"{re.escape(begin)}(?:(?!{re.escape(begin)}).)*?{re.escape(end)}"
    found = re.search(pattern, text, re.DOTALL)
    if found is not None:
        return text[: found.start()] + part + text[found.end() :]
    return f"{text.rstrip()}\n\n{part}\n".lstrip()


def training_text(training: str, results: Optional[Mapping[str, Score]]) -> str:
    """Return the part of a model card on training and results; see `write_card` for the arguments."""
    parts = [f"## Training\n\n{training.strip()}"] if training else []
    if results:
        rows = "".join(f"| {name} | {_score(score)} |\n" for name, score in results.items())
        parts.append(f"## Results\n\n| metric | |\n|---|---|\n{rows}")
    return "\n\n".join(parts)


def _is_score(score: Any) -> bool:
    return is_number(score) or isinstance(score, tuple) and len(score) == 2 and all(map(is_number, score))


def _score(score: Score) -> str:
    return f"{score[0]:.4f} +- {score[1]:.4f}" if isinstance(score, tuple) else f"{score:.4f}"


def _adapter_text(facts: CardFacts) -> str:
    config = facts.config
    base = (
        facts.hub_base_model or f"{code_span(Path(config.base_model_name_or_path or 'unnamed').name)}, a local model"
    )
    settings = "".join(f"- `{name}`: {plain(value)}\n" for name, value in method_settings(config).items())
    citations = "\n\n".join(config.citations)
    return f"""# {plain(Path(facts.location).name)}

An adapter for {base}: {config.summary} (`{type(config).__name__}`).

## Use

{code_block("python", snippet(facts))}

{input_text(facts.settings, facts.sampling_rate) if facts.has_labels else ""}
## Adapter

{settings}- trained parameters, with the head: {facts.num_parameters:,}
- file: {facts.num_bytes / 1e6:.3f} MB

## Citation

```bibtex
{citations}
```
"""


def method_settings(config: EncoderAdapterConfig) -> dict[str, Any]:
    """Return the fields of a configuration that belong to its method and are not None, by name."""
    shared = EncoderAdapterConfig.__dataclass_fields__
    settings = {name: value for name, value in vars(config).items() if name not in shared}
    settings["layers_to_transform"] = config.layers_to_transform
    settings["stack"] = None if config.stack == "encoder" else config.stack
    known = config.__dataclass_fields__
    return {name: value for name, value in settings.items() if name in known and value is not None}


def snippet(facts: CardFacts) -> str:
    """Return Python code that loads the adapter with its base model and, for those that can, lets it hear a file."""
    lines = ["import peft_audio  # tells PEFT about this kind of adapter"]
    auto_class = facts.settings.get(AUTO_CLASS)
    ours = (auto_class if auto_class in SPEECH_TASKS else SPEECH_TASKS[0]).replace("AutoModel", "AutoPeftModel")
    if auto_class in TASKS:
        if not facts.has_tokenizer:
            return "\n".join([*lines, "", f"model = peft_audio.{ours}.from_pretrained({facts.location!r})"])
        lines += ["import librosa", "import torch", "from transformers import AutoProcessor", ""]
        lines += [f"location = {facts.location!r}", f"model = peft_audio.{ours}.from_pretrained(location)"]
        return "\n".join([*lines, *transcribe_a_file("location", "Seq2Seq" in ours)])
    if not facts.hears_files:
        lines += [
            f"from transformers import {facts.base_class or 'AutoModel'}",
            "from peft import PeftConfig, PeftModel",
            "",
            f"location = {facts.location!r}",
            "config = PeftConfig.from_pretrained(location)",
            f"base = {facts.base_class or 'AutoModel'}.from_pretrained(config.base_model_name_or_path)",
            "model = PeftModel.from_pretrained(base, location)",
        ]
        return "\n".join(lines)
    extractor = "location" if facts.preprocessor is not None else "base_model"
    length = ", max_length=model.config.max_length" if "max_length" in facts.settings else ""
    lines += [
        "import librosa",
        "import torch",
        "from transformers import AutoFeatureExtractor",
        "",
        f"location = {facts.location!r}",
        f"model = peft_audio.{ours}.from_pretrained(location)",
        *(["base_model = model.peft_config['default'].base_model_name_or_path"] if extractor == "base_model" else []),
    ]
    return "\n".join([*lines, *hear_a_file(extractor + length, facts.settings)])

"""Several adapters of one base model, and what each of them makes of the same sound.

    comparison = load_adapters(["esc50-ipet", "me/birds"])
    comparison.predict(waveform, 16000, ["esc50-ipet", "birds"], top_k=3)

The clip is repeated once for each adapter, and the batch goes through the model in one call, every sample with its own
adapter and head (`adapter_names`). The output of a call is one tensor of logits, and a `PeftModel` holds adapters of
one type, so adapters that differ in type, number of labels or input are put into groups: one model and one call each,
all of them on the tensors of one backbone.
"""

import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import librosa
import numpy as np
import torch
from attention_picture import AttentionMap, attention_map
from peft import PeftConfig, PeftModel
from transformers import AutoFeatureExtractor, BatchFeature

from peft_audio import AutoPeftModelForAudioClassification
from peft_audio.data import MEL_HOP_SECONDS, minimum_seconds


# PEFT warns of these for every model, and nobody who runs this can do anything about them.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated|Could not find a config file in")

LABEL_SETTINGS = ("id2label", "problem_type")
Predictions = list[tuple[str, float]]


@dataclass(frozen=True)
class Adapter:
    """One adapter in a group's model.

    Args:
        name: its name in the `PeftModel`, which does not take every folder's name.
        labels: in the order of its head's outputs.
        multi_label: whether a clip can have several labels, each with a probability of its own.
    """

    name: str
    labels: list[str]
    multi_label: bool


class AdapterGroup:
    """Adapters that answer in one call: of one type, with equally many labels and the same input.

    Args:
        model: in evaluation mode, with all of them on it.
        feature_extractor: makes the model's input.
        adapters: by the name that people see.
    """

    def __init__(self, model: PeftModel, feature_extractor, adapters: dict[str, Adapter]):
        self.model, self.feature_extractor, self.adapters = model, feature_extractor, adapters

    @property
    def min_seconds(self) -> float:
        return minimum_seconds(self.model.get_base_model().config, self.feature_extractor.sampling_rate)

    @property
    def max_seconds(self) -> float:
        """How much of a clip the model hears; infinity where there is no limit."""
        if hasattr(self.feature_extractor, "chunk_length"):  # Whisper
            return self.feature_extractor.chunk_length
        return getattr(self.feature_extractor, "max_length", math.inf) * MEL_HOP_SECONDS

    @torch.inference_mode()
    def predict(
        self, waveform: np.ndarray, sampling_rate: int, names: Sequence[str], top_k: int
    ) -> dict[str, Predictions]:
        """See `Comparison.predict`; all `names` are of this group."""
        inputs = self._inputs(waveform, sampling_rate)
        batch = {key: torch.cat([value] * len(names)) for key, value in inputs.items()}
        adapters = [self.adapters[name] for name in names]
        logits = self.model(**batch, adapter_names=[adapter.name for adapter in adapters]).logits.float()
        return {name: top(row, adapter, top_k) for name, adapter, row in zip(names, adapters, logits)}

    def attention(self, waveform: np.ndarray, sampling_rate: int, name: str) -> AttentionMap | None:
        """See `Comparison.attention`."""
        inputs = self._inputs(waveform, sampling_rate)
        # Inputs of a limited length are padded to it.
        seconds = len(waveform) / sampling_rate if math.isinf(self.max_seconds) else self.max_seconds
        return attention_map(self.model, inputs, seconds, adapter_names=[self.adapters[name].name])

    def _inputs(self, waveform: np.ndarray, sampling_rate: int) -> BatchFeature:
        rate = self.feature_extractor.sampling_rate
        waveform = librosa.resample(waveform, orig_sr=sampling_rate, target_sr=rate)
        return self.feature_extractor(waveform, sampling_rate=rate, return_tensors="pt")


class Comparison:
    """Adapters over one backbone; made by `load_adapters`. For one thread at a time.

    Args:
        base_model: the name or folder of the backbone.
        names: of all adapters, in the order in which they were given.
        groups: the adapters, each in one group.
    """

    def __init__(self, base_model: str, names: list[str], groups: list[AdapterGroup]):
        self.base_model, self.names, self.groups = base_model, names, groups

    @property
    def sampling_rate(self) -> int:
        """In Hz, of the models' input."""
        return self.groups[0].feature_extractor.sampling_rate

    @property
    def min_seconds(self) -> float:
        """The shortest clip that every adapter takes."""
        return max(group.min_seconds for group in self.groups)

    def max_seconds(self, name: str) -> float:
        """How much of a clip the adapter of this name hears, from its start; infinity where there is no limit."""
        return self._group_of(name).max_seconds

    def _group_of(self, name: str) -> AdapterGroup:
        return next(group for group in self.groups if name in group.adapters)

    def predict(
        self, waveform: np.ndarray, sampling_rate: int, names: Iterable[str], top_k: int = 5
    ) -> dict[str, Predictions]:
        """What the adapters called `names` predict for one clip.

        Args:
            waveform: mono, shape (samples,), full scale +-1.
            sampling_rate: of the waveform, in Hz; the models' own is made from it.
            names: some of `self.names`.
            top_k: the number of labels returned for each adapter, at most all it has.

        Returns:
            For each name the `top_k` most probable labels and their probabilities, the most probable first. They are a
            softmax over the adapter's labels, or, where a clip can have several labels, each label's own sigmoid.

        Raises:
            ValueError: there is no such adapter or none is named, `top_k` is below 1, or the waveform is not mono,
                not finite or shorter than `self.min_seconds`.
        """
        names, waveform = list(dict.fromkeys(names)), np.asarray(waveform, dtype=np.float32)
        self._check(waveform, sampling_rate, names, top_k)
        results = {}
        for group in self.groups:
            members = [name for name in names if name in group.adapters]
            if members:
                results |= group.predict(waveform, sampling_rate, members, top_k)
        return {name: results[name] for name in names}

    def attention(self, waveform: np.ndarray, sampling_rate: int, name: str) -> AttentionMap | None:
        """What the model attends to in a clip with the adapter called `name`, see `attention_map`.

        Raises:
            ValueError: as `predict`.
        """
        waveform = np.asarray(waveform, dtype=np.float32)
        self._check(waveform, sampling_rate, [name])
        return self._group_of(name).attention(waveform, sampling_rate, name)

    def _check(self, waveform: np.ndarray, sampling_rate: int, names: list[str], top_k: int = 1) -> None:
        unknown = [name for name in names if name not in self.names]
        if unknown or not names:
            wrong = ", ".join(map(repr, unknown)) or "none"
            raise ValueError(f"`names` must be one or more of {', '.join(map(repr, self.names))}, got {wrong}.")
        if top_k < 1:
            raise ValueError(f"`top_k` must be 1 or more, got {top_k}.")
        if waveform.ndim != 1 or not np.isfinite(waveform).all():
            what = f"shape {waveform.shape}" if waveform.ndim != 1 else "numbers that are not finite"
            raise ValueError(f"`waveform` must be mono, shape (samples,), and finite, got {what}.")
        if waveform.size < self.min_seconds * sampling_rate:
            raise ValueError(
                f"`waveform` must last {self.min_seconds:.3f} s or more, got {waveform.size / sampling_rate:.3f} s."
            )


def top(logits: torch.Tensor, adapter: Adapter, top_k: int) -> Predictions:
    """The most probable labels, from the logits (labels,) of one clip."""
    probabilities = logits.sigmoid() if adapter.multi_label else logits.softmax(-1)
    best = probabilities.topk(min(top_k, len(adapter.labels)))
    return [(adapter.labels[index], value) for index, value in zip(best.indices.tolist(), best.values.tolist())]


def load_adapters(sources: Iterable[str | os.PathLike]) -> Comparison:
    """Loads adapters of this package that were trained on one base model, each with its labels and its head.

    Args:
        sources: folders or Hub ids. An adapter is called by the last part of it, or by all where that is not unique.

    Raises:
        ValueError: there is none, one cannot be used, or they are not all of the same base model.
        OSError: the base model cannot be had.
    """
    sources = list(dict.fromkeys(os.fspath(source) for source in sources))
    if not sources:
        raise ValueError("No adapter is given. Name at least one: a folder, or an id on the Hub.")
    # As saved: an adapter that is loaded beside another takes over the label names of the model.
    configs = {source: config_of(source) for source in sources}
    check_same_base(configs)
    names = name_adapters(sources)
    groups: dict[tuple, AdapterGroup] = {}
    for source, name in zip(sources, names):
        feature_extractor = load_feature_extractor(source, configs[source])
        key = group_key(configs[source], feature_extractor)
        if key not in groups:
            # Eager attention is the one that gives its weights.
            options = {"adapter_name": "adapter_0", "attn_implementation": "eager"}
            model = AutoPeftModelForAudioClassification.from_pretrained(source, **options)
            groups[key] = AdapterGroup(model, feature_extractor, {})
        else:
            groups[key].model.load_adapter(source, adapter_name=f"adapter_{len(groups[key].adapters)}")
        groups[key].adapters[name] = describe(configs[source], f"adapter_{len(groups[key].adapters)}")
    share_tensors([group.model for group in groups.values()])
    return Comparison(configs[sources[0]].base_model_name_or_path, names, list(groups.values()))


def config_of(source: str) -> PeftConfig:
    try:
        config = PeftConfig.from_pretrained(source)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{source}: no adapter can be read there ({error}). Give an adapter's folder or id."
        ) from error
    if not getattr(config, "labels", None):
        raise ValueError(
            f"Adapter {source!r} ({type(config).__name__}) does not say which labels it was trained on. Give adapters "
            "that this package has trained and saved; those of PEFT's own types do not store their labels."
        )
    return config


def check_same_base(configs: dict[str, PeftConfig]) -> None:
    """Raises ValueError, naming both, if two adapters are of different base models."""
    (first, config), *others = configs.items()
    for source, other in others:
        if base_of(other) != base_of(config):
            raise ValueError(
                f"Adapters to compare must be of one base model, but {first!r} was trained on {' at '.join(base_of(config))} "
                f"and {source!r} on {' at '.join(base_of(other))}. Leave one of them out."
            )


def base_of(config: PeftConfig) -> tuple[str, str]:
    """The base model's folder or Hub id, and its revision."""
    name = str(config.base_model_name_or_path)
    return str(Path(name).resolve()) if Path(name).is_dir() else name, f"revision {config.revision or 'main'}"


def name_adapters(sources: list[str]) -> list[str]:
    last = [Path(source).resolve().name if Path(source).is_dir() else source.split("/")[-1] for source in sources]
    return [name if last.count(name) == 1 else source for source, name in zip(sources, last)]


def load_feature_extractor(source: str, config: PeftConfig):
    """The feature extractor saved beside the adapter, else the base model's, for the adapter's input length."""
    try:
        feature_extractor = AutoFeatureExtractor.from_pretrained(source)
    except OSError:
        feature_extractor = AutoFeatureExtractor.from_pretrained(
            config.base_model_name_or_path, revision=config.revision
        )
    if "max_length" in config.base_settings:
        feature_extractor.max_length = config.base_settings["max_length"]
    return feature_extractor


def group_key(config: PeftConfig, feature_extractor) -> tuple:
    """What adapters must have in common to be on one model and answer in one batch."""
    settings = {name: value for name, value in config.base_settings.items() if name not in LABEL_SETTINGS}
    preprocessing = feature_extractor.to_json_string()
    return config.peft_type, len(config.labels), json.dumps(settings, sort_keys=True), preprocessing


def describe(config: PeftConfig, name: str) -> Adapter:
    multi_label = config.base_settings.get("problem_type") == "multi_label_classification"
    return Adapter(name, config.labels, multi_label)


def share_tensors(models: list[PeftModel]) -> None:
    """Lets all models use the first one's tensors where theirs are equal: the backbone is in memory once."""
    first: dict[str, torch.nn.Parameter] = {}
    for model in models:
        for name, parameter in model.named_parameters():
            # What a module is called without the layers that PEFT puts around it.
            name = re.sub(r"\b(base_layer|original_module)\.", "", name)
            other = first.setdefault(name, parameter)
            if torch.equal(other, parameter):
                parameter.data = other.data

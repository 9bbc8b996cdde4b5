"""Clips as model inputs: runs the feature extractor over each clip once, and makes batches of the results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoFeatureExtractor, SequenceFeatureExtractor

from .clips import Clip
from .decoding import check_seconds, load_clip, report_bad_files
from .torch_features import TorchFeatures, computed_by, with_torch


# Fixed in the spectrogram extractors of transformers.
MEL_WINDOW_SECONDS = 0.025
"""Length of the window of a mel spectrogram."""
MEL_HOP_SECONDS = 0.010
"""Time from one frame of a mel spectrogram to the next."""


def model_inputs(waveform: np.ndarray, feature_extractor: Any) -> dict[str, np.ndarray]:
    """Return the feature extractor's outputs for one clip, without the batch axis, computed by `TorchFeatures`.

    Args:
        waveform: `(samples,)` at the feature extractor's sampling rate, full scale +-1.
        feature_extractor: one of transformers, or anything with its `sampling_rate` and call, which is then called.

    Returns:
        By name, e.g. `input_values` `(frames, mel bins)` for AST or `(samples,)` for wav2vec2.
    """
    extract = with_torch(feature_extractor)
    outputs = extract(waveform, sampling_rate=extract.sampling_rate, return_tensors="np")
    return {name: np.asarray(value)[0] for name, value in outputs.items()}


def load_feature_extractor(
    name: str, max_length: Optional[int] = None, max_seconds: Optional[float] = None
) -> SequenceFeatureExtractor:
    """Load a model's feature extractor, for as many frames as the model takes.

    Args:
        name: folder or Hub id of the model.
        max_length: frames of 10 ms that an AST will take, see `peft_audio.resize_ast`; None for the model's own.
        max_seconds: seconds that a Whisper will take, see `peft_audio.resize_whisper`, rounded up to whole ones, as its
            files hold no others; None for the model's own. For other models it changes nothing.

    Raises:
        OSError: there is no such model.
        ValueError: `max_length` is given, and the model takes no fixed number of frames.
    """
    config = AutoConfig.from_pretrained(name)
    feature_extractor = AutoFeatureExtractor.from_pretrained(name)
    if hasattr(config, "patch_size"):
        feature_extractor.max_length = max_length or config.max_length
    elif max_length is not None:
        raise ValueError(
            f"max_length {max_length} is for AST, whose input has a fixed number of frames; {name} is of type "
            f"{config.model_type!r}. To cut long clips use max_seconds."
        )
    if max_seconds is not None and pads_to_fixed_seconds(feature_extractor):
        feature_extractor = AutoFeatureExtractor.from_pretrained(name, chunk_length=math.ceil(max_seconds))
    return feature_extractor


def pads_to_fixed_seconds(feature_extractor: Any) -> bool:
    """Whether a feature extractor makes all clips equally long, as Whisper's does."""
    return hasattr(feature_extractor, "chunk_length") and hasattr(feature_extractor, "n_samples")


def extract_features(
    clips: list[Clip],
    feature_extractor: Any,
    min_seconds: float = 0.0,
    max_seconds: Optional[float] = None,
    skip_bad_files: bool = False,
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, str]]:
    """Decode every clip and run the feature extractor over it, once, for all epochs.

    `FeatureCache` does the same in parallel, and keeps the features on disk.

    Args:
        clips: the clips.
        feature_extractor: see `model_inputs`.
        min_seconds: shorter clips cannot be used; see `minimum_seconds`.
        max_seconds: longer clips are cut to this length.
        skip_bad_files: leave files out that cannot be used, with a warning that lists them.

    Returns:
        The features by clip name, as `model_inputs` returns them, and the reasons by name of the files left out.

    Raises:
        ValueError: `max_seconds` is not above 0.
        BadAudioError: some files cannot be used, and `skip_bad_files` is False. Lists all of them.
    """
    check_seconds(max_seconds)
    features, bad_files = {}, {}
    for clip in tqdm(clips, desc="Computing features", unit="clip", leave=False):
        try:
            waveform = load_clip(clip, feature_extractor.sampling_rate, min_seconds, max_seconds)
        except ValueError as error:
            bad_files[clip.name] = str(error)
            continue
        features[clip.name] = model_inputs(waveform, feature_extractor)
    report_bad_files(bad_files, len(clips), skip_bad_files)
    return features, bad_files


def minimum_seconds(config: Any, sampling_rate: int) -> float:
    """Return the length in seconds of the shortest clip that a model can take in training and evaluation.

    Args:
        config: the model's configuration.
        sampling_rate: of the model's input, in Hz.
    """
    if hasattr(config, "patch_size"):
        return (config.patch_size - 1) * MEL_HOP_SECONDS + MEL_WINDOW_SECONDS
    masked = getattr(config, "apply_spec_augment", False) and config.mask_time_prob > 0
    # SpecAugment inside these models raises an error for a batch that is shorter than one of its masks.
    steps = config.mask_time_length if masked else 1
    if hasattr(config, "feature_projection_input_dim"):  # wav2vec2-bert: two frames a step
        return (2 * steps - 1) * MEL_HOP_SECONDS + MEL_WINDOW_SECONDS
    if not hasattr(config, "conv_kernel"):  # Whisper, which pads
        return MEL_WINDOW_SECONDS
    samples = max(steps, getattr(config, "squeeze_factor", 1))
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        samples = (samples - 1) * stride + kernel
    return samples / sampling_rate


class FeatureDataset(torch.utils.data.Dataset):
    """Features and labels by index, as the Trainer takes them.

    An item has the clip's features, and under "labels" a class index, or if `multi_label` a 0/1 vector `(labels,)`.

    Args:
        clips: the clips, in this order.
        features: by clip name; from `extract_features` or `FeatureCache`.
        labels: label names by index.
        multi_label: whether a clip can have several labels.
    """

    def __init__(
        self,
        clips: list[Clip],
        features: Mapping[str, Mapping[str, np.ndarray]],
        labels: Sequence[str],
        multi_label: bool = False,
    ) -> None:
        self.names, self.features = [clip.name for clip in clips], features
        position = {label: index for index, label in enumerate(labels)}
        if multi_label:
            self.targets = np.zeros((len(clips), len(labels)), dtype=np.float32)
            for row, clip in zip(self.targets, clips, strict=True):
                row[[position[label] for label in clip.labels]] = 1
        else:
            self.targets = np.array([position[clip.labels[0]] for clip in clips])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.features[self.names[index]], "labels": self.targets[index]}


class AudioCollator:
    """Makes batches: the Trainer's `data_collator` for items of `FeatureDataset`, `StreamedInputs` and `StreamedClips`.

    Items with a "waveform" `(samples,)`, and no features, get those that `model_inputs` makes, all of a batch at once.

    Args:
        feature_extractor: pads clips of different lengths to the longest, with its mask.
        device: where features of waveforms are computed, see `TorchFeatures`. Elsewhere than on the CPU batches must be
            made in the main process (`dataloader_num_workers=0`) and not be pinned (`dataloader_pin_memory=False`).

    Raises:
        ValueError: see `TorchFeatures`.
    """

    def __init__(self, feature_extractor: Any, device: Union[str, torch.device, None] = None) -> None:
        self.feature_extractor = feature_extractor
        self.extract = with_torch(feature_extractor) if device is None else TorchFeatures(feature_extractor, device)

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return a batch of tensors by name, `labels` among them."""
        labels = torch.from_numpy(np.stack([item["labels"] for item in items]))
        if "waveform" in items[0]:
            return {**self._features([item["waveform"] for item in items]), "labels": labels}
        inputs = [{name: value for name, value in item.items() if name != "labels"} for item in items]
        return {**self._joined(inputs), "labels": labels}

    def _joined(self, inputs: list[dict[str, np.ndarray]]) -> Mapping[str, torch.Tensor]:
        if all(len({np.shape(item[name]) for item in inputs}) == 1 for name in inputs[0]):
            return {name: torch.from_numpy(np.stack([item[name] for item in inputs])) for name in inputs[0]}
        return self.feature_extractor.pad(inputs, padding="longest", return_tensors="pt")

    def _features(self, waveforms: list[np.ndarray]) -> Mapping[str, torch.Tensor]:
        extract = self.extract
        if computed_by(extract) is None or getattr(extract, "padding_side", "right") != "right":
            return self._joined([model_inputs(waveform, extract) for waveform in waveforms])
        # With masks, so that no clip is normalized together with padding behind it.
        options = {} if pads_to_fixed_seconds(extract) else {"padding": "longest", "return_attention_mask": True}
        batch = extract(waveforms, sampling_rate=extract.sampling_rate, return_tensors="pt", **options)
        if options and not extract.return_attention_mask:
            batch.pop("attention_mask", None)
        return batch

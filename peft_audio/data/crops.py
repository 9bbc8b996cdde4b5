"""Cuts of recordings: at random to train on, another one in every epoch, and evenly spread ones to test on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np
import torch

from .clips import Clip
from .features import MEL_HOP_SECONDS, MEL_WINDOW_SECONDS


class RandomCrops(torch.utils.data.Dataset):
    """A cut of each recording and its label by index; `AudioCollator` makes features of a batch of cuts.

    Shorter recordings are repeated. The cuts depend on the seed, the epoch and the index alone, so a training that goes on
    from a checkpoint reads the same ones.

    Args:
        clips: the recordings, each with its label.
        waveforms: by clip name, from `FeatureCache(folder, None, sampling_rate=...)`.
        labels: label names by index.
        num_samples: of a cut.
        seed: of the cuts.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        waveforms: Mapping[str, Mapping[str, np.ndarray]],
        labels: Sequence[str],
        num_samples: int,
        seed: int = 0,
    ) -> None:
        position = {label: index for index, label in enumerate(labels)}
        self.names, self.targets = [clip.name for clip in clips], [position[clip.labels[0]] for clip in clips]
        self.waveforms, self.num_samples, self.seed, self.epoch = waveforms, num_samples, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Cut the recordings elsewhere in another epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        waveform = np.asarray(self.waveforms[self.names[index]]["waveform"])
        places = max(0, len(waveform) - self.num_samples) + 1
        start = np.random.default_rng((self.seed, self.epoch, index)).integers(places)
        return {
            "waveform": cut_or_fill(waveform[start:], self.num_samples, "repeat"),
            "labels": self.targets[index],
        }


class Segments(torch.utils.data.Dataset):
    """Every recording as `test_segments` inputs one after the other; "labels" are the recordings' numbers.

    Args:
        recordings: the recordings.
        waveforms: by clip name, see `RandomCrops`.
        recipe: has `frames` (10 ms each; None for whole recordings), `fill` (see `cut_or_fill`) and `test_segments`.
        feature_extractor: of the model.
    """

    def __init__(
        self,
        recordings: Sequence[Clip],
        waveforms: Mapping[str, Mapping[str, np.ndarray]],
        recipe: Any,
        feature_extractor: Any,
    ) -> None:
        self.recordings, self.waveforms = recordings, waveforms
        self.recipe, self.feature_extractor = recipe, feature_extractor

    def __len__(self) -> int:
        return len(self.recordings) * self.recipe.test_segments

    def __getitem__(self, index: int) -> dict[str, Any]:
        recording, number = divmod(index, self.recipe.test_segments)
        waveform = self.waveforms[self.recordings[recording].name]["waveform"]
        segment, extract = segment_of(waveform, number, self.recipe, self.feature_extractor), self.feature_extractor
        outputs = extract(segment, sampling_rate=extract.sampling_rate, return_tensors="np")
        return {**{name: np.asarray(value)[0] for name, value in outputs.items()}, "labels": recording}


def segment_of(waveform: np.ndarray, index: int, recipe: Any, feature_extractor: Any) -> np.ndarray:
    """Return segment number `index` of those that are tested, evenly spread from the front to the end.

    Args:
        waveform: `(samples,)` of the recording.
        index: number of the segment.
        recipe: see `Segments`.
        feature_extractor: of the model.
    """
    num_samples, gaps = input_samples(recipe, feature_extractor), recipe.test_segments - 1
    if num_samples is None:
        return waveform
    start = round(index * max(len(waveform) - num_samples, 0) / gaps) if gaps else 0
    # Spectrograms are filled up by the feature extractor: zeros there are something else than silence.
    fill = "cut" if hasattr(feature_extractor, "num_mel_bins") and recipe.fill == "pad" else recipe.fill
    return cut_or_fill(waveform[start:], num_samples, fill)


def input_samples(recipe: Any, feature_extractor: Any) -> Optional[int]:
    """Return the number of samples of the model's input; None where clips stay as long as they are.

    Args:
        recipe: see `Segments`.
        feature_extractor: of the model.
    """
    overhang = MEL_WINDOW_SECONDS - MEL_HOP_SECONDS if hasattr(feature_extractor, "num_mel_bins") else 0
    seconds = (recipe.frames or 0) * MEL_HOP_SECONDS + overhang
    return None if recipe.frames is None else round(seconds * feature_extractor.sampling_rate)


def cut_or_fill(waveform: np.ndarray, num_samples: int, fill: str) -> np.ndarray:
    """Return the front of a waveform; a shorter one is repeated ("repeat"), followed by zeros ("pad") or left so ("cut").

    Args:
        waveform: `(samples, ...)`.
        num_samples: of the front.
        fill: what becomes of a shorter one.
    """
    missing = num_samples - len(waveform)
    if missing > 0 and fill == "repeat":
        return np.resize(waveform, (num_samples, *waveform.shape[1:]))
    if missing > 0 and fill == "pad":
        return np.pad(waveform, [(0, missing)] + [(0, 0)] * (waveform.ndim - 1))
    return waveform[:num_samples]

"""From clips to what the model is given: cut to length, mixed, augmented, normalized."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from training.augmentation import SpecAugment, mix_waveforms, noise_and_roll, random_crop, soft_target

from peft_audio.data import Clip
from peft_audio.data.crops import input_samples, segment_of

from .recipe import Recipe


UNKNOWN = -100.0  # the mark of targets that do not count, in losses and metrics


def needs_waveforms(recipe: Recipe, reads_waveforms: bool) -> bool:
    """Whether features cannot be computed once for all epochs, because training changes the waveforms."""
    return reads_waveforms or bool(recipe.mixup or recipe.musan or recipe.random_crop or recipe.test_segments > 1)


@dataclass
class Preparation:
    """How a clip becomes the input of the model.

    Args:
        recipe: says how.
        feature_extractor: of the model. That of an AST leaves normalizing to this class: masks and statistics are of
            spectrograms as they are.
        statistics: mean and standard deviation of the data set's spectrograms; None for waveforms.
        musan: adds the noise of the MUSAN corpus, `(waveform, rng) -> waveform`.
    """

    recipe: Recipe
    feature_extractor: object
    statistics: tuple[float, float] | None = None
    musan: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None

    @property
    def num_samples(self) -> int | None:
        """Length of the input; None where clips stay as long as they are."""
        return input_samples(self.recipe, self.feature_extractor)

    def cut(self, waveform: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Bring a waveform to the length of the input, with `rng` a random part of it."""
        length = self.num_samples
        if rng is not None and self.recipe.random_crop and length is not None and len(waveform) > length:
            return random_crop(waveform, length, rng)
        return segment_of(waveform, 0, self.recipe, self.feature_extractor)

    def segment(self, waveform: np.ndarray, index: int) -> np.ndarray:
        """Cut number `index` of those that are tested, evenly spread from the front to the end."""
        return segment_of(waveform, index, self.recipe, self.feature_extractor)

    def features(self, waveform: np.ndarray) -> dict[str, np.ndarray]:
        """Run the feature extractor over one waveform."""
        outputs = self.feature_extractor(
            waveform, sampling_rate=self.feature_extractor.sampling_rate, return_tensors="np"
        )
        return {name: np.asarray(value)[0] for name, value in outputs.items()}

    def finished(
        self, features: Mapping[str, np.ndarray], rng: np.random.Generator | None = None
    ) -> dict[str, np.ndarray]:
        """Normalize a spectrogram `(frames, mel bins)`, with `rng` augmented; waveforms stay as they are."""
        if self.statistics is None:
            return dict(features)
        spectrogram = features["input_values"]
        if rng is not None and self.recipe.spec_augment is not None:
            spectrogram = SpecAugment(*self.recipe.spec_augment)(spectrogram, rng)
        mean, std = self.statistics
        spectrogram = (spectrogram - mean) / (2 * std)  # AST's rule
        if rng is not None and self.recipe.noise:
            spectrogram = noise_and_roll(spectrogram, rng)
        return {**features, "input_values": spectrogram.astype(np.float32)}


def targets_of(clips: list[Clip], labels: list[str], loss: str) -> np.ndarray:
    """The targets `(clips,)`, class indices; for binary cross-entropy `(clips, labels)` of 0, 1 and NaN for unknown."""
    position = {label: index for index, label in enumerate(labels)}
    if loss == "cross_entropy":
        return np.array([position[clip.labels[0]] for clip in clips])
    targets = np.zeros((len(clips), len(labels)), dtype=np.float32)
    for row, clip in zip(targets, clips, strict=True):
        row[[position[label] for label in clip.unknown if label in position]] = np.nan
        row[[position[label] for label in clip.labels]] = 1
    return targets


class TrainingSet(torch.utils.data.Dataset):
    """Training clips, augmented anew in every epoch.

    The random numbers of an item come from torch's generator, so a seed decides them, in worker processes too.

    Args:
        clips: the clips.
        store: by clip name, {"waveform": ...} or the feature extractor's outputs.
        labels: label names by index.
        preparation: how clips become inputs.
    """

    def __init__(self, clips: list[Clip], store: Mapping, labels: list[str], preparation: Preparation) -> None:
        self.clips, self.store, self.preparation = clips, store, preparation
        self.num_labels = len(labels)
        self.targets = targets_of(clips, labels, preparation.recipe.loss)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(int(torch.randint(2**62, ()).item()))
        stored, target = self.store[self.clips[index].name], self.targets[index]
        if "waveform" in stored:
            waveform, target = self.mixed(self.preparation.cut(stored["waveform"], rng), target, rng)
            if self.preparation.musan is not None:
                waveform = self.preparation.musan(waveform, rng)
            stored = self.preparation.features(waveform)
        return {**self.preparation.finished(stored, rng), "labels": marked(target)}

    def mixed(self, waveform: np.ndarray, target: np.ndarray, rng: np.random.Generator):
        """The waveform and its target, or mixtures with those of another clip."""
        share = self.preparation.recipe.mixup
        if not share:
            return waveform, target
        if rng.random() >= share:
            return waveform, soft_target(target, target, 1.0, self.num_labels)
        other = int(rng.integers(len(self)))
        second = self.preparation.cut(self.store[self.clips[other].name]["waveform"], rng)
        waveform, weight = mix_waveforms(waveform, second, rng)
        return waveform, soft_target(target, self.targets[other], weight, self.num_labels)


class TestSet(torch.utils.data.Dataset):
    """Clips to test on, each as `test_segments` inputs one after the other; targets as in training, never mixed."""

    __test__ = False  # no test case, whatever its name

    def __init__(self, clips: list[Clip], store: Mapping, targets: np.ndarray, preparation: Preparation) -> None:
        self.clips, self.store, self.targets, self.preparation = clips, store, targets, preparation

    def __len__(self) -> int:
        return len(self.clips) * self.preparation.recipe.test_segments

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        clip, segment = divmod(index, self.preparation.recipe.test_segments)
        stored = self.store[self.clips[clip].name]
        if "waveform" in stored:
            stored = self.preparation.features(self.preparation.segment(stored["waveform"], segment))
        return {**self.preparation.finished(stored), "labels": marked(self.targets[clip])}


def marked(target: np.ndarray) -> np.ndarray:
    """The target with `UNKNOWN` in the place of NaN, which the Trainer would count as known."""
    return np.nan_to_num(target, nan=UNKNOWN) if np.issubdtype(np.asarray(target).dtype, np.floating) else target

"""The features of transformers' feature extractors, in batches, spectrograms several times as fast, on a GPU if asked."""

from __future__ import annotations

import inspect
import logging
from typing import Any, Optional, Union

import numpy as np
import torch
from transformers import BatchFeature
from transformers.utils import TensorType

from .recipes import RECIPES, NotCoveredError, Outputs, Recipe


logger = logging.getLogger(__name__)

VERSION = 1  # of the numbers; raised when they change by more than rounding
OWN = frozenset({"feature_extractor", "device"})
CONTAINERS = (np.ndarray, torch.Tensor, list, tuple)
DTYPES = frozenset(map(np.dtype, ("float32", "float64", "int8", "uint8", "int16", "int32", "int64")))
told: set[tuple[type, str]] = set()  # what was said of settings that are not covered


class TorchFeatures:
    """A feature extractor of transformers, whose features are computed in batches with torch.

    Takes the place of `ASTFeatureExtractor`, `SeamlessM4TFeatureExtractor` (wav2vec2-bert), `Wav2Vec2FeatureExtractor`
    and `WhisperFeatureExtractor`: same arguments, keys, shapes and dtypes, and their numbers to 1e-4. Where only the
    extractor itself will do (another class, stereo, a setting that is not covered) it is called, and a warning names the
    setting once. `peft_audio.data` makes features in this way by itself.

    Waveforms are mono, at the extractor's sampling rate, full scale +-1 or whatever the extractor would be given:
    `(samples,)`, `(clips, samples)` or a list of the former; arrays (float32, float64 or integers), lists of numbers, or
    tensors on any device.

    With torchaudio installed, `ASTFeatureExtractor` takes its 32-bit spectrograms, which are up to 1e-3 (before
    normalization) from these; these are those without torchaudio.

    Args:
        feature_extractor: of the model. Its settings are read at every call, and are attributes of this object too.
        device: where features are computed, e.g. `model.device`, and where tensors are returned
            (`return_tensors="pt"`); None: on the CPU. Elsewhere a mel bin or waveform that never changes becomes 0 when it
            is normalized; the extractors make rounding errors of it.

    Raises:
        ValueError: the device has no 64-bit numbers; when called, a waveform has fewer than 240 samples and a
            spectrogram is wanted, or the extractor refuses what it is given.
        RuntimeError: when called in a worker process of a `DataLoader`, with a device that is not the CPU.

    Examples:
        >>> features = TorchFeatures(ASTFeatureExtractor(max_length=512))
        >>> features([np.zeros(16000), np.zeros(8000)], sampling_rate=16000, return_tensors="pt").input_values.shape
        torch.Size([2, 512, 128])
    """

    def __init__(self, feature_extractor: Any, device: Union[str, torch.device, None] = None) -> None:
        device = torch.device("cpu" if device is None else device)
        if device.type == "mps":
            raise ValueError(
                f"device must have 64-bit numbers, without which features are not exact enough, got {str(device)!r}. "
                "Leave it out, and move the features."
            )
        self.feature_extractor, self.device = unwrapped(feature_extractor), device

    def __getattr__(self, name: str) -> Any:
        if name in OWN or name.startswith("__"):  # copies and unpickled objects have none yet
            raise AttributeError(name)
        return getattr(self.feature_extractor, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in OWN:
            super().__setattr__(name, value)
        else:
            setattr(self.feature_extractor, name, value)

    @torch.no_grad()
    def __call__(self, raw_speech: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """Return the features of one or more waveforms, as the feature extractor would.

        Args:
            raw_speech: the waveforms.
            args: as for the feature extractor.
            kwargs: as for the feature extractor.
        """
        if self.device.type != "cpu" and torch.utils.data.get_worker_info() is not None:
            raise RuntimeError(
                f"device must be the CPU in a worker of a DataLoader, got {str(self.device)!r}. Leave it out, or set "
                "num_workers (dataloader_num_workers) to 0."
            )
        extractor = self.feature_extractor
        try:
            recipe = covering(extractor)
            options = call_options(extractor, recipe, raw_speech, args, kwargs)
            clips = [clip.to(self.device) for clip in as_clips(raw_speech, recipe.keeps_dtype)]
            with torch.autocast(self.device.type, enabled=False):
                outputs = recipe.compute(extractor, clips, options)
            return as_batch(outputs, options["return_tensors"])
        except NotCoveredError as reason:
            setting = reason.setting
        features = extractor(raw_speech, *args, **kwargs)
        tell_once(extractor, setting)
        return features if self.device.type == "cpu" else features.to(self.device)


def unwrapped(feature_extractor: Any) -> Any:
    """Return the feature extractor itself."""
    return feature_extractor.feature_extractor if isinstance(feature_extractor, TorchFeatures) else feature_extractor


def with_torch(feature_extractor: Any) -> TorchFeatures:
    """Return a feature extractor that computes with torch: itself, if it does so already."""
    return feature_extractor if isinstance(feature_extractor, TorchFeatures) else TorchFeatures(feature_extractor)


def computed_by(feature_extractor: Any) -> Optional[str]:
    """Return the name of the way in which features are computed; None for that of the feature extractor itself."""
    try:
        covering(unwrapped(feature_extractor))
    except NotCoveredError:
        return None
    return f"TorchFeatures {VERSION} on {with_torch(feature_extractor).device.type}"


def covering(extractor: Any) -> Recipe:
    """Return the recipe for an extractor.

    Raises:
        NotCoveredError: there is none for its class or settings.
    """
    if type(extractor) not in RECIPES:
        raise NotCoveredError("its class")
    recipe = RECIPES[type(extractor)]
    recipe.check(extractor)
    return recipe


def call_options(extractor: Any, recipe: Recipe, raw_speech: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Return the arguments of a call by name, with the defaults of the extractor.

    Raises:
        NotCoveredError: one of them is not covered.
    """
    signature = inspect.signature(type(extractor).__call__)
    bound = signature.bind(extractor, raw_speech, *args, **kwargs)
    bound.apply_defaults()
    for name, parameter in list(signature.parameters.items())[2:]:
        is_ignored = parameter.kind is inspect.Parameter.VAR_KEYWORD or name in recipe.options
        if not is_ignored and bound.arguments[name] != parameter.default:
            raise NotCoveredError(f"{name}={bound.arguments[name]!r}")
    options = bound.arguments
    if options["return_tensors"] not in (None, TensorType.PYTORCH, TensorType.NUMPY):
        raise NotCoveredError(f"return_tensors={options['return_tensors']!r}")
    if options["sampling_rate"] is None:
        logger.warning("No sampling_rate was given with waveforms; %s Hz is assumed.", extractor.sampling_rate)
    elif options["sampling_rate"] != extractor.sampling_rate:
        raise NotCoveredError(f"sampling_rate={options['sampling_rate']}")
    return options


def as_clips(raw_speech: Any, keeps_dtype: bool) -> list[torch.Tensor]:
    """Return waveforms `(samples,)`, in float32 but for what the extractors leave in another dtype.

    Raises:
        NotCoveredError: they are not mono, empty, or of a dtype that has no waveforms.
    """
    is_array = isinstance(raw_speech, (np.ndarray, torch.Tensor))
    nested = isinstance(raw_speech, (list, tuple)) and len(raw_speech) > 0
    is_batch = raw_speech.ndim > 1 if is_array else nested and isinstance(raw_speech[0], CONTAINERS)
    keeps_dtype = keeps_dtype or (is_array and not is_batch)
    waveforms = raw_speech if is_batch else [raw_speech]
    if keeps_dtype and len({getattr(waveform, "dtype", None) for waveform in waveforms}) > 1:
        raise NotCoveredError("a batch of several dtypes")
    return [_as_clip(waveform, keeps_dtype) for waveform in waveforms]


def _as_clip(waveform: Any, keeps_dtype: bool) -> torch.Tensor:
    if isinstance(waveform, torch.Tensor):
        clip = waveform.detach()
    else:
        array = np.asarray(waveform)
        if array.dtype not in DTYPES:
            raise NotCoveredError(f"a waveform of dtype {array.dtype}")
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        clip = torch.from_numpy(np.require(native, requirements=["C", "W"]))
    if clip.ndim != 1 or len(clip) == 0:
        raise NotCoveredError(f"a waveform of shape {tuple(clip.shape)}")
    return clip if keeps_dtype and clip.dtype != torch.float64 else clip.float()


def as_batch(outputs: Outputs, return_tensors: Union[str, TensorType, None]) -> BatchFeature:
    """Return outputs in the form that was asked for.

    Raises:
        NotCoveredError: clips of different lengths cannot be one tensor.
    """
    if return_tensors is None:
        return BatchFeature({name: _as_arrays(value) for name, value in outputs.items()})
    if any(isinstance(value, list) and len({row.shape for row in value}) > 1 for value in outputs.values()):
        raise NotCoveredError("return_tensors for clips of different lengths")
    tensors = {name: _stacked(value) if isinstance(value, list) else value for name, value in outputs.items()}
    if return_tensors == TensorType.PYTORCH:
        return BatchFeature(tensors)
    return BatchFeature({name: _as_arrays(value) for name, value in tensors.items()})


def _stacked(rows: list[torch.Tensor]) -> torch.Tensor:
    return rows[0][None] if len(rows) == 1 else torch.stack(rows)


def _as_arrays(value: Union[torch.Tensor, list[torch.Tensor]]) -> Any:
    return [row.cpu().numpy() for row in value] if isinstance(value, list) else value.cpu().numpy()


def tell_once(extractor: Any, setting: str) -> None:
    """Warn that the extractor itself makes the features, once for each of its classes and settings."""
    if (type(extractor), setting) not in told:
        told.add((type(extractor), setting))
        name = type(extractor).__name__
        logger.warning("%s: %s is not covered by TorchFeatures; the extractor itself makes features.", name, setting)

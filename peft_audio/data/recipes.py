"""What the feature extractors of transformers compute clip by clip, for batches and on any device."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Union

import numpy as np
import torch
from transformers import (
    ASTFeatureExtractor,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)
from transformers.audio_utils import mel_filter_bank, window_function

from .filling import SMALLEST_VARIANCE, filled, moments, standardized
from .log_mel import FLOOR, FRAME, TRANSFORM, frame_count, kaldi_log_mel, whisper_log_mel


# A tensor: one array without `return_tensors` too. A list: a list of arrays then.
Outputs = dict[str, Union[torch.Tensor, list[torch.Tensor]]]
Options = Mapping[str, Any]

BINS = TRANSFORM // 2 + 1
RATE = 16000  # Hz, at which 400 samples are Kaldi's 25 ms
INT16 = 1 << 15  # full scale of 16-bit audio
LOG_FLOOR = float(np.log(np.float32(FLOOR)))
STEADY = 0.02  # standard deviation of a log-mel below which its last bit is 1e-4 of what normalization makes of it


class NotCoveredError(ValueError):
    """Only the feature extractor itself can make these features.

    Args:
        setting: the setting and its value, or what else it is about.
    """

    def __init__(self, setting: str) -> None:
        self.setting = setting
        super().__init__(setting)


@dataclass(frozen=True)
class Recipe:
    """How to do what one class of feature extractors does.

    Args:
        check: raises `NotCoveredError` for settings of the extractor that are not covered.
        compute: makes the outputs of clips `(samples,)` on one device, with the extractor and the options of its call.
        options: those that are covered; others are only with their default.
        keeps_dtype: whether arrays keep their dtype, float64 excepted; else a single array does.
    """

    check: Callable[[Any], None]
    compute: Callable[[Any, list[torch.Tensor], Options], Outputs]
    options: frozenset[str]
    keeps_dtype: bool = False


def _require(is_covered: bool, extractor: Any, name: str) -> None:
    if not is_covered:
        value = getattr(extractor, name, None)
        raise NotCoveredError(f"{name}={f'an array {value.shape}' if isinstance(value, np.ndarray) else repr(value)}")


def _is_number(value: Any) -> bool:
    """Whether a setting is a plain number: one of NumPy's would change the dtype of what is computed with it."""
    return type(value) in (int, float)


def _check_kaldi(extractor: Any) -> None:
    if not hasattr(extractor, "mel_filters"):  # torchaudio is installed, whose frames depend on the rate
        return _require(extractor.sampling_rate == RATE, extractor, "sampling_rate")
    _require(np.shape(extractor.window) == (FRAME,), extractor, "window")
    _require(np.shape(extractor.mel_filters) == (BINS, extractor.num_mel_bins), extractor, "mel_filters")


def _check_ast(extractor: Any) -> None:
    _check_kaldi(extractor)
    for name in ("mean", "std"):
        _require(_is_number(getattr(extractor, name)), extractor, name)


def _check_filling(extractor: Any) -> None:
    _require(_is_number(extractor.padding_value), extractor, "padding_value")
    _require(extractor.padding_side in ("left", "right"), extractor, "padding_side")


def _check_seamless(extractor: Any) -> None:
    _check_kaldi(extractor)
    _check_filling(extractor)
    _require(extractor.feature_size > 1, extractor, "feature_size")  # else it pads the mel bins too


def _check_whisper(extractor: Any) -> None:
    _check_filling(extractor)
    _require(extractor.feature_size > 1, extractor, "feature_size")
    _require(_is_number(extractor.dither), extractor, "dither")
    shape = (extractor.n_fft // 2 + 1, extractor.feature_size)
    _require(np.shape(extractor.mel_filters) == shape, extractor, "mel_filters")


def _check_waveform(extractor: Any) -> None:
    _check_filling(extractor)
    _require(extractor.feature_size == 1, extractor, "feature_size")


@lru_cache
def _kaldi_filters(num_mel_bins: int) -> np.ndarray:
    """Return what `ASTFeatureExtractor` keeps in `mel_filters` where torchaudio is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of empty filters, which the extractor has as well
        return mel_filter_bank(
            num_frequency_bins=BINS,
            num_mel_filters=num_mel_bins,
            min_frequency=20,
            max_frequency=RATE // 2,
            sampling_rate=RATE,
            norm=None,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )


def _log_mels(extractor: Any, clips: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the log-mel of each clip, `(frames, mel bins)`: on a CPU one after the other, elsewhere all at once."""
    if hasattr(extractor, "mel_filters"):
        window, filters = extractor.window, extractor.mel_filters
    else:
        window, filters = window_function(FRAME, "hann", periodic=False), _kaldi_filters(extractor.num_mel_bins)
    device = clips[0].device
    bank = [torch.as_tensor(np.asarray(array, np.float64), device=device) for array in (window, filters)]
    counts = [frame_count(len(clip)) for clip in clips]
    if device.type == "cpu":
        return [kaldi_log_mel(clip[None], *bank)[0] for clip in clips]
    batch = kaldi_log_mel(torch.nn.utils.rnn.pad_sequence(clips, batch_first=True), *bank)
    return [rows[:count] for rows, count in zip(batch, counts, strict=True)]


def _filled(extractor: Any, clips: list[torch.Tensor], options: Options) -> tuple[list[torch.Tensor], ...]:
    if extractor.padding_value and not clips[0].is_floating_point():
        raise NotCoveredError(f"padding_value={extractor.padding_value} for clips of {clips[0].dtype}")
    return filled(clips, extractor, options)


def _standardized(extractor: Any, rows: list[torch.Tensor], masks: list[torch.Tensor]) -> list[torch.Tensor]:
    value = extractor.padding_value
    return [standardized(row, int(mask.sum()), value) for row, mask in zip(rows, masks, strict=True)]


def _require_equal_lengths(rows: list[torch.Tensor], options: Options) -> None:
    if len({len(row) for row in rows}) > 1:
        raise NotCoveredError(f"padding={options['padding']!r} for clips of different lengths")


def _ast(extractor: Any, clips: list[torch.Tensor], options: Options) -> Outputs:
    rows = []
    for log_mel in _log_mels(extractor, clips):
        log_mel = log_mel[: extractor.max_length]
        row = torch.nn.functional.pad(log_mel, (0, 0, 0, extractor.max_length - len(log_mel)))
        rows.append(row.sub_(extractor.mean).div_(extractor.std * 2) if extractor.do_normalize else row)
    return {"input_values": rows}


def _seamless(extractor: Any, clips: list[torch.Tensor], options: Options) -> Outputs:
    if not clips[0].is_floating_point():
        raise NotCoveredError(f"a waveform of {clips[0].dtype}")  # the extractor multiplies in that
    rows = _log_mels(extractor, [clip * INT16 for clip in clips])
    if options["do_normalize_per_mel_bins"]:
        rows = [_normalized_bins(row) for row in rows]
    rows, masks = filled(rows, extractor, options)
    _require_equal_lengths(rows, options)
    stride = extractor.stride
    frames = len(rows[0]) // stride * stride
    features = torch.stack(rows)[:, :frames].reshape(len(rows), frames // stride, rows[0].shape[1] * stride)
    outputs: Outputs = {"input_features": features}
    wanted = options["return_attention_mask"]
    if extractor.return_attention_mask if wanted is None else wanted:
        kept = torch.arange(frames) % stride == 1
        outputs["attention_mask"] = torch.stack(masks)[:, :frames][:, kept.to(features.device)]
    return outputs


def _normalized_bins(log_mel: torch.Tensor) -> torch.Tensor:
    mean, variance = moments(log_mel.T.contiguous().T, correction=1)
    is_steady = (variance < STEADY**2) & (log_mel > LOG_FLOOR).any(0)
    if log_mel.device.type == "cpu" and bool(is_steady.any()):
        raise NotCoveredError("a clip whose spectrum hardly changes")
    return (log_mel - mean) / (variance + SMALLEST_VARIANCE).sqrt()


def _whisper(extractor: Any, clips: list[torch.Tensor], options: Options) -> Outputs:
    normalize, wanted, hop = options["do_normalize"], options["return_attention_mask"], extractor.hop_length
    limit = options["max_length"] or extractor.n_samples
    rows, masks = _filled(extractor, clips, {**options, "max_length": limit})
    _require_equal_lengths(rows, options)
    size = len(rows[0])
    if size <= max(extractor.n_fft // 2, hop):
        raise NotCoveredError(f"clips of {size} samples")
    if normalize:
        rows = _standardized(extractor, rows, masks)
    waveforms = torch.stack(rows).float()
    if extractor.dither:
        waveforms += extractor.dither * torch.randn_like(waveforms)
    ends_silent = extractor.padding_side == "right" and not extractor.padding_value and not extractor.dither
    sounding = min(max(map(len, clips)), size) if ends_silent else size
    filters = torch.as_tensor(extractor.mel_filters, dtype=torch.float64, device=waveforms.device)
    outputs: Outputs = {"input_features": whisper_log_mel(waveforms, hop, extractor.n_fft, filters, sounding)}
    asked = wanted or normalize
    if extractor.return_attention_mask if asked is None else asked:
        mask = torch.stack(masks)
        # As the extractor has it: of the samples, unless the call asks for one.
        outputs["attention_mask"] = mask[:, ::hop][:, : size // hop] if wanted else mask
    return outputs


def _waveform(extractor: Any, clips: list[torch.Tensor], options: Options) -> Outputs:
    rows, masks = _filled(extractor, clips, options)
    wanted = options["return_attention_mask"]
    has_mask = extractor.return_attention_mask if wanted is None else wanted
    if extractor.do_normalize:
        is_masked = has_mask and options["padding"] not in (False, "do_not_pad")
        rows = _standardized(extractor, rows, masks) if is_masked else [standardized(row) for row in rows]
    else:
        _require_equal_lengths(rows, options)
    outputs: Outputs = {"input_values": rows if extractor.do_normalize else torch.stack(rows)}
    return {**outputs, "attention_mask": masks} if has_mask else outputs


_CALL = frozenset({"sampling_rate", "return_tensors"})
_FILLING = _CALL | {"padding", "max_length", "truncation", "pad_to_multiple_of", "return_attention_mask"}
RECIPES: dict[type, Recipe] = {
    ASTFeatureExtractor: Recipe(_check_ast, _ast, _CALL),
    SeamlessM4TFeatureExtractor: Recipe(_check_seamless, _seamless, _FILLING | {"do_normalize_per_mel_bins"}),
    Wav2Vec2FeatureExtractor: Recipe(_check_waveform, _waveform, _FILLING, keeps_dtype=True),
    WhisperFeatureExtractor: Recipe(_check_whisper, _whisper, _FILLING | {"do_normalize"}),
}

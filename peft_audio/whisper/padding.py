"""Clips that are shorter than Whisper's input: attention and the head's mean leave the padding out."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import nn
from torch.utils.data import Dataset

from ..heads.remembered import check_installed
from ..upstream.hooks import forward_hooks
from ..upstream.peft_modules import has_adapters
from ..upstream.transformers_models import encoder_mask
from ..utils.running_calls import RunningCall, RunningCalls
from .encoders import whisper_encoders
from .resize import FRAMES_PER_TOKEN


PADDING_MASK = "padding_mask"  # field of a model's configuration, and of an adapter's base-model settings
SPECTROGRAM_DIM = 3  # (batch, mel bins, frames); cached states have one more
LAYER_ARGUMENT = "padding_mask"  # by which the encoder hands the mask on to its layers


def use_padding_mask(model: nn.Module) -> nn.Module:
    """Let a Whisper classifier leave the padding of short clips out, in place.

    transformers' Whisper has no mask: attention reads the silence behind a clip, and the classifier averages it in. After
    this call padded tokens are hidden from attention, and the mean is taken over the clip's own tokens, so the logits do
    not depend on how far a clip is padded.

    What is padding is worked out of the spectrogram, see `padding_mask`, unless the model is given `attention_mask`,
    `(batch, frames)`. The feature extractor's (`return_attention_mask=True`) differs by the frames at a clip's end that see
    a little of both. `cache_frozen`, which keeps no spectrograms, needs a mask among a clip's inputs.

    Call this before `get_peft_model`. The model's configuration and an adapter's checkpoint remember it, and
    `AutoPeftModelForAudioClassification` restores it. transformers' `from_pretrained` alone does not: call this function
    on the model again.

    Args:
        model: a `WhisperForAudioClassification`. One that leaves padding out already stays as it is.

    Raises:
        ValueError: if the model is no such classifier, or has adapters.

    Examples:
        >>> config = WhisperConfig(d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16)
        >>> model = peft_audio.use_padding_mask(WhisperForAudioClassification(config))
        >>> model.config.padding_mask
        True
    """
    if not is_whisper_classifier(model) or has_adapters(model):
        raise ValueError(
            "use_padding_mask takes a WhisperForAudioClassification without adapters, got "
            f"{type(model).__name__}. Call it first, then get_peft_model."
        )
    whisper: Any = model
    if not _is_installed(whisper):
        _install(whisper)
    setattr(whisper.config, PADDING_MASK, True)
    return whisper


def is_whisper_classifier(model: Any) -> bool:
    """Whether the model has an encoder of Whisper's, and a head that averages projected frames."""
    is_classifier = all(hasattr(model, name) for name in ("encoder", "projector", "classifier"))
    return is_classifier and whisper_encoders(model) == [model.encoder]


def remembers_padding_mask(config: Any) -> bool:
    """Whether a model's configuration asks for `use_padding_mask`."""
    return bool(getattr(config, PADDING_MASK, False))


def has_padding_mask(model: Any) -> bool:
    """Whether this Whisper classifier leaves padding out.

    Raises:
        ValueError: if the configuration asks for it, but the model was loaded without.
    """
    return check_installed(
        model, PADDING_MASK, _is_installed(model), "use_padding_mask", "without it and averages padding in"
    )


def padding_mask(input_features: torch.Tensor) -> torch.Tensor:
    """Return which frames of Whisper's spectrograms belong to a clip, and which are padding behind it.

    The feature extractor pads with zeros. In a log-mel spectrogram they are frames with one value in all bins, its floor,
    which no frame with sound has. So a clip that ends in digital silence is taken to end before it.

    Args:
        input_features: `(batch, mel bins, frames)`.

    Returns:
        `(batch, frames)`, True for the clip; at least one frame a clip.
    """
    has_sound = input_features.amax(dim=1) != input_features.amin(dim=1)
    until_end = has_sound.flip(1).cummax(dim=1).values.flip(1)
    return until_end | (torch.arange(until_end.shape[1], device=until_end.device) == 0)


class _Given:
    """What a running call of a classifier was given: its input, and which tokens are no padding, `(batch, tokens)`."""

    def __init__(self, features: torch.Tensor, real_tokens: torch.Tensor) -> None:
        self.features = features
        self.real_tokens = real_tokens
        self.has_reached_encoder = False


# Not kept in the model: PEFT copies the head's modules, with their hooks, for every adapter.
_running: RunningCalls[_Given] = RunningCalls()


def _install(model: Any) -> None:
    model.register_forward_pre_hook(enter, with_kwargs=True)
    model.register_forward_hook(leave, always_call=True)
    model.encoder.register_forward_pre_hook(enter_encoder, with_kwargs=True)
    for layer in model.encoder.layers:
        layer.register_forward_pre_hook(enter_layer, with_kwargs=True)
    model.projector.register_forward_pre_hook(enter_projector)


def enter(model: Any, args: tuple, kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of the classifier."""
    if len(args) > 1 or kwargs.get("encoder_outputs") is not None:
        raise ValueError(
            "A model with use_padding_mask takes `input_features`, from which it knows what is padding, not "
            "`encoder_outputs`."
        )
    features = args[0] if args else kwargs["input_features"]
    _running.enter(model, _Given(features, _real_tokens(model.encoder, features, kwargs.get("attention_mask"))))


def leave(model: Any, args: tuple, output: Any) -> None:
    """Forward hook of the classifier, called after errors too."""
    _running.leave(model)


def enter_encoder(encoder: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Forward pre-hook of the encoder: gives its layers a mask.

    They get it as an argument, so that it is at hand too when gradient checkpointing runs a layer again.
    """
    features = args[0] if args else kwargs["input_features"]
    call = _running.innermost()
    if call is not None and _is_own_encoder(call, encoder, features):
        call.kept.has_reached_encoder = True
        is_real = call.kept.real_tokens
    else:  # called without the classifier, or by a hook within a call of the classifier
        is_real = _real_tokens(encoder, features, args[1] if len(args) > 1 else kwargs.get("attention_mask"))
    tokens = encoder.embed_positions.weight.expand(len(is_real), -1, -1)
    return args, kwargs | {LAYER_ARGUMENT: encoder_mask(encoder.config, tokens, is_real)}


def _is_own_encoder(call: RunningCall[_Given], encoder: nn.Module, features: torch.Tensor) -> bool:
    """Whether it is the running classifier that calls this encoder."""
    # Cached states are replaced before they reach the encoder.
    is_same = features is call.kept.features or call.kept.features.dim() != SPECTROGRAM_DIM
    return call.module.encoder is encoder and is_same and not call.kept.has_reached_encoder


def _real_tokens(encoder: Any, features: torch.Tensor, mask: Optional[torch.Tensor]) -> torch.Tensor:
    """Return `(batch, tokens)`, True for those of the clip; `features` are cached states, with a mask, or spectrograms."""
    num_tokens = encoder.embed_positions.num_embeddings
    if mask is None and features.dim() == SPECTROGRAM_DIM:
        mask = padding_mask(features)
    expected = (len(features), FRAMES_PER_TOKEN * num_tokens)
    if mask is None or tuple(mask.shape) != expected:
        got = None if mask is None else tuple(mask.shape)
        raise ValueError(
            f"`attention_mask` must be of shape (batch, frames), here {expected}, for a model with use_padding_mask, got "
            f"{got}. Call the feature extractor with return_attention_mask=True."
        )
    is_real = mask[:, ::FRAMES_PER_TOKEN].to(device=encoder.embed_positions.weight.device, dtype=torch.bool)
    return is_real | ~is_real.any(dim=1, keepdim=True)  # of a clip without any, all are as good


def enter_projector(projector: nn.Module, args: tuple) -> Optional[tuple]:
    """Forward pre-hook of the head's projection: weights its frames so that their mean is that of the clip's own."""
    call = _running.innermost()
    if call is None:
        return None
    hidden_states, is_real = args[0], call.kept.real_tokens
    # The weights' mean is 1, so the projection's bias comes out of the mean as it went in.
    weights = is_real / is_real.float().mean(dim=1, keepdim=True)
    return (hidden_states * weights.to(hidden_states.dtype).unsqueeze(-1),)


def enter_layer(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Forward pre-hook of an encoder layer: makes the encoder's mask its attention mask."""
    kwargs = dict(kwargs)
    mask = kwargs.pop(LAYER_ARGUMENT, None)
    if len(args) > 1:
        return (args[0], mask, *args[2:]), kwargs
    return args, kwargs | {"attention_mask": mask}


def _is_installed(model: Any) -> bool:
    return enter in forward_hooks(model)


class WithPaddingMask(Dataset):
    """A data set of Whisper's spectrograms that gives each clip its `attention_mask`, made by `padding_mask`.

    Args:
        dataset: its items have `input_features`, `(mel bins, frames)`.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.dataset[index]
        return {**item, "attention_mask": padding_mask(torch.as_tensor(item["input_features"])[None])[0].long()}

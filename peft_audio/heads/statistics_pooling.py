"""Statistics pooling: the head that IPET gives wav2vec2, on the mean and standard deviation over time."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import nn

from ..backbones.table import resolve
from ..upstream.peft_modules import has_adapters
from ..upstream.transformers_models import frame_mask
from ..utils.running_calls import RunningCalls
from .remembered import check_installed


# Smaller variances are raised to this one: the square root has no gradient at zero.
MIN_VARIANCE = 1e-12


def use_statistics_pooling(model: nn.Module) -> nn.Module:
    """Give a wav2vec2-type classifier IPET's head (section 3.1 of the paper), in place: `Linear(LN([mean, std]))`.

    Mean and unbiased standard deviation are taken over the frames of the last hidden states, `(batch, frames, d)` to
    `(batch, 2 d)`. With an attention mask they are taken over the frames that are no padding.

    Call this before `get_peft_model`. The model's configuration and an adapter's checkpoint remember the head, and
    `AutoPeftModelForAudioClassification` restores it. transformers' `from_pretrained` alone does not: call this function
    on the model again.

    Args:
        model: a classifier that averages projected frames.

    Returns:
        The same model, with a new head.

    Raises:
        ValueError: if the model is no such classifier, has adapters, or already has this head.

    Examples:
        >>> config = Wav2Vec2Config(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, num_labels=5)
        >>> model = peft_audio.use_statistics_pooling(Wav2Vec2ForSequenceClassification(config))
        >>> model.classifier[1]
        Linear(in_features=32, out_features=5, bias=True)
    """
    _install(model, _frame_projection(model))
    return model


def _frame_projection(model: nn.Module) -> str:
    """Return the name of the head's module that the pooling replaces, or raise ValueError if there is none."""
    if has_adapters(model):
        raise ValueError(
            f"use_statistics_pooling comes before adapters are put on a model, but this {type(model).__name__} has some."
        )
    backbone = resolve(model)
    name = backbone.spec.frame_projection
    if name is None or not hasattr(model, name):
        raise ValueError(
            f"use_statistics_pooling takes a classifier that averages projected frames (wav2vec2 type), but "
            f"{type(model).__name__} of type {backbone.model_type!r} has no such head."
        )
    if pools_statistics(model):
        raise ValueError(f"This {type(model).__name__} pools statistics already.")
    return name


def _install(model: Any, frame_projection: str) -> None:
    backbone = resolve(model)
    *_, classifier = backbone.head
    hidden_size, reference = backbone.hidden_size, getattr(model, classifier).weight
    linear = nn.Linear(2 * hidden_size, model.config.num_labels)
    head = nn.Sequential(nn.LayerNorm(2 * hidden_size), linear)
    nn.init.normal_(linear.weight, std=getattr(model.config, "initializer_range", 0.02))
    nn.init.zeros_(linear.bias)
    setattr(model, frame_projection, StatisticsPooling())
    setattr(model, classifier, head.to(device=reference.device, dtype=reference.dtype))
    model.register_forward_pre_hook(enter, with_kwargs=True)
    model.register_forward_hook(leave, always_call=True)
    model.config.statistics_pooling = True


def pools_statistics(model: nn.Module) -> bool:
    """Whether the head of `use_statistics_pooling` is installed, whatever the model's configuration says."""
    return any(isinstance(module, StatisticsPooling) for module in model.modules())


def has_statistics_pooling(model: Any) -> bool:
    """Whether this classifier pools statistics.

    Args:
        model: a model of transformers.

    Raises:
        ValueError: if the configuration asks for it, but the model was loaded without.
    """
    installed = pools_statistics(model)
    if not hasattr(model, "classifier"):
        return installed
    return check_installed(model, "statistics_pooling", installed, "use_statistics_pooling", "with a plain head")


class StatisticsPooling(nn.Module):
    """Replaces the projection of the frames, before the classifier's own mean over time.

    Every frame gets the same vector: the statistics of the whole clip. So the mean that follows returns them.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return `[mean, std]` of each clip, repeated for each frame.

        Args:
            hidden_states: `(batch, frames, d)`.

        Returns:
            `(batch, frames, 2 d)`
        """
        num_frames = hidden_states.shape[1]
        call = _running.innermost()
        if call is None or call.kept is None:
            mask = hidden_states.new_ones(1, num_frames, 1)
        else:
            mask = frame_mask(call.module, num_frames, call.kept).unsqueeze(-1).to(hidden_states.dtype)
        statistics = mean_and_std(hidden_states, mask)
        return statistics.unsqueeze(1).repeat(1, num_frames, 1)


# The attention masks of running classifiers, `(batch, samples)`. Not kept in the model: PEFT copies the head's modules.
_running: RunningCalls[Optional[torch.Tensor]] = RunningCalls()


def enter(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of the classifier: keep its attention mask for the pooling."""
    _running.enter(model, kwargs.get("attention_mask", args[1] if len(args) > 1 else None))


def leave(model: nn.Module, args: tuple, output: Any) -> None:
    """Forward hook of the classifier, called after errors too."""
    _running.leave(model)


def mean_and_std(frames: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return [mean, unbiased standard deviation] over the frames with mask 1.

    Args:
        frames: `(batch, frames, d)`.
        mask: `(batch or 1, frames, 1)`, 1 for the frames that count, else 0. The standard deviation of a clip with a
            single frame is 0.

    Returns:
        `(batch, 2 d)`
    """
    count = mask.sum(dim=1)
    mean = (frames * mask).sum(dim=1) / count
    deviations = (frames - mean.unsqueeze(1)) * mask
    variance = deviations.square().sum(dim=1) / (count - 1).clamp(min=1)
    return torch.cat([mean, variance.clamp(min=MIN_VARIANCE).sqrt()], dim=-1)

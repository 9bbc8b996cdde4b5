"""Statistics pooling: the head that IPET gives wav2vec2, on the mean and standard deviation over time."""

from __future__ import annotations

from typing import Optional

import torch
from torch import nn

from ..backbones.table import frame_mask, resolve
from ..upstream.peft_layers import has_adapters
from ..utils.per_thread import PerThread


# The smallest variance that is told from zero: the square root has no gradient at zero.
MIN_VARIANCE = 1e-12


def use_statistics_pooling(model: nn.Module) -> nn.Module:
    """Give a wav2vec2-type classifier the head of IPET (section 3.1): `Linear(LN([mean, std]))`, in place.

    Mean and unbiased standard deviation are taken over the frames of the last hidden states, `(batch, frames, d)` to
    `(batch, 2 d)`; with an attention mask, over the frames that are no padding. Call it before `get_peft_model`.

    Returns:
        The same model. Its configuration remembers the head, and so does the checkpoint of an adapter. transformers'
        `from_pretrained` alone knows nothing of it: after it, call this function on the model again.

    Raises:
        ValueError: if the model has no classifier that pools frames, or pools statistics already.
    """
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
    *_, classifier = backbone.head
    hidden_size, reference = backbone.hidden_size, getattr(model, classifier).weight
    pooling = StatisticsPooling()
    head = nn.Sequential(nn.LayerNorm(2 * hidden_size), nn.Linear(2 * hidden_size, model.config.num_labels))
    nn.init.normal_(head[1].weight, std=getattr(model.config, "initializer_range", 0.02))
    nn.init.zeros_(head[1].bias)
    setattr(model, name, pooling)
    setattr(model, classifier, head.to(device=reference.device, dtype=reference.dtype))
    model.register_forward_pre_hook(pooling.remember_mask, with_kwargs=True)
    model.config.statistics_pooling = True
    return model


def pools_statistics(model: nn.Module) -> bool:
    return any(isinstance(module, StatisticsPooling) for module in model.modules())


def has_statistics_pooling(model: nn.Module) -> bool:
    """Whether this classifier pools statistics.

    Raises:
        ValueError: if its configuration says so, but it was loaded without.
    """
    installed = pools_statistics(model)
    if getattr(model.config, "statistics_pooling", False) and not installed and hasattr(model, "classifier"):
        raise ValueError(
            f"The configuration of this {type(model).__name__} has statistics_pooling=True, but the model was loaded "
            "with a plain head. Call peft_audio.use_statistics_pooling(model) first."
        )
    return installed


class PoolingPass(PerThread):
    """One forward pass: the model and the attention mask that it was given, `(batch, samples)`."""

    def __init__(self) -> None:
        self.mask_of: Optional[tuple[nn.Module, torch.Tensor]] = None


class StatisticsPooling(nn.Module):
    """Stands in for the projection of every frame, in front of the classifier's own mean over time.

    It gives every frame the same vector, the statistics of the whole clip, so that the mean that follows returns them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pass = PoolingPass()

    def remember_mask(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        """Forward pre-hook of the classifier: keep its attention mask, `(batch, samples)`, for the pooling."""
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        self._pass.mask_of = None if mask is None else (model, mask)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map frames `(batch, frames, d)` to `(batch, frames, 2 d)`, the same [mean, std] in every frame."""
        num_frames = hidden_states.shape[1]
        if self._pass.mask_of is None:
            mask = hidden_states.new_ones(1, num_frames, 1)
        else:
            (model, mask), self._pass.mask_of = self._pass.mask_of, None
            mask = frame_mask(model, num_frames, mask).unsqueeze(-1).to(hidden_states.dtype)
        statistics = mean_and_std(hidden_states, mask)
        return statistics.unsqueeze(1).repeat(1, num_frames, 1)


def mean_and_std(frames: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return [mean, unbiased standard deviation] over the frames with mask 1.

    Args:
        frames: `(batch, frames, d)`.
        mask: `(batch or 1, frames, 1)`, of 0 and 1. A clip of a single frame has standard deviation 0.

    Returns:
        `(batch, 2 d)`
    """
    count = mask.sum(dim=1)
    mean = (frames * mask).sum(dim=1) / count
    deviations = (frames - mean.unsqueeze(1)) * mask
    variance = deviations.square().sum(dim=1) / (count - 1).clamp(min=1)
    return torch.cat([mean, variance.clamp(min=MIN_VARIANCE).sqrt()], dim=-1)

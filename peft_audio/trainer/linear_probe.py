"""A linear probe on the features of a frozen base model: what any adapter has to beat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn

from ..backbones.module_names import head_modules
from ..losses import IGNORED
from ..upstream.torch_modules import install_stand_in, remove_stand_in
from ..upstream.transformers_models import frame_mask
from ..utils.undisturbed import undisturbed


MAX_FITTED = 20_000


def has_frozen_base(model: Any) -> bool:
    """Whether the base model below the head is as it was loaded, so that its features are there without adapters.

    Full fine-tuning and biases of the base model (`LoraConfig(bias="all")`, BitFit) change it for good.
    """
    is_peft = isinstance(model, PeftModel)
    base = model.get_base_model() if is_peft else model
    apart = ["modules_to_save", *(f"{name}." for name in head_modules(base))]
    if is_peft:
        apart.append(getattr(model.base_model, "prefix", "modules_to_save"))
    trained = [name for name, parameter in base.named_parameters() if parameter.requires_grad]
    return all(any(part in name for part in apart) for name in trained)


@torch.no_grad()
def head_features(model: nn.Module, batches: Iterable[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Return what the head of the base model reads of each clip, a mean over the tokens if it reads several.

    Args:
        model: a classifier. Adapters on it are switched off.
        batches: its inputs with `labels`, on its device. If these are of frames, what the head reads of each frame is
            returned, padding left out.

    Returns:
        Features `(clips, d)` in float32, and labels `(clips, ...)`; `(frames, d)` and `(frames, labels)` for labels of frames.

    Raises:
        ValueError: the base model trains too.
    """
    if not has_frozen_base(model):
        raise ValueError(
            f"A linear probe needs the features of the base model, but weights of this {type(model).__name__}'s train too."
        )
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    features: list[torch.Tensor] = []
    labels = []

    without_adapters = model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()
    with undisturbed(model), without_adapters, _inputs_of_head(base) as seen:
        model.eval()
        for batch in batches:
            model(**{name: value for name, value in batch.items() if name != "labels"})
            targets, states = batch["labels"], seen.pop()
            if targets.dim() == 3:
                known = targets.ne(IGNORED).all(dim=-1)
                states, targets = states[known], targets[known]
            else:
                states = _mean_over_tokens(base, states, batch.get("attention_mask"))
            features.append(states.float().cpu())
            labels.append(targets.cpu())
    return torch.cat(features).numpy(), torch.cat(labels).numpy()


@contextmanager
def _inputs_of_head(base: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Give a list to which every pass of the model appends what its head reads."""
    wrapper = base.get_submodule(head_modules(base)[0])
    head: Any = getattr(wrapper, "original_module", wrapper)  # whose own hooks have their say, as with a padding mask
    seen: list[torch.Tensor] = []
    forward = head.forward

    def keep(states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(states)
        return forward(states, *args, **kwargs)

    # No hook, which would see what stands for the cached states of `cache_frozen` instead of these.
    before = install_stand_in(head, "forward", keep)
    try:
        yield seen
    finally:
        remove_stand_in(head, "forward", before)


def _mean_over_tokens(model: Any, states: torch.Tensor, attention_mask: Any) -> torch.Tensor:
    if states.dim() == 2:
        return states
    if attention_mask is None or not hasattr(model, "freeze_feature_encoder"):
        return states.mean(dim=1)
    mask = frame_mask(model, states.shape[1], attention_mask).unsqueeze(-1).to(states.dtype)
    return (states * mask).sum(dim=1) / mask.sum(dim=1)


def fit_and_score(features: np.ndarray, labels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Fit a logistic regression, and return its scores for other clips as a model's logits.

    Args:
        features: `(clips, d)` to fit to; of more than 20,000, evenly spaced ones.
        labels: class indices `(clips,)`, or for several labels a clip 0/1 `(clips, labels)`.
        others: `(other clips, d)`.

    Returns:
        `(other clips, labels)`; for class indices, labels up to the largest index.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(features) > MAX_FITTED:  # frames: neighbors say the same
        chosen = np.linspace(0, len(features) - 1, MAX_FITTED).round().astype(int)
        features, labels = features[chosen], labels[chosen]

    def scores(targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(features, targets)
        return model.classes_, model.predict_log_proba(others)

    if labels.ndim == 1:
        logits = np.full((len(others), int(labels.max()) + 1), -np.inf)
        if len(np.unique(labels)) == 1:
            logits[:, labels[0]] = 0.0
        else:
            classes, logits[:, classes] = scores(labels)
        return logits
    columns = []
    for targets in labels.T.astype(int):
        if len(np.unique(targets)) == 1:
            columns.append(np.full(len(others), 20.0 * targets[0] - 10.0))
        else:
            _, pair = scores(targets)
            columns.append(pair[:, 1] - pair[:, 0])
    return np.stack(columns, axis=1)

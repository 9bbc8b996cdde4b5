"""What a base model does in training that is wrong for one that is frozen, and for its adapters."""

from __future__ import annotations

from torch import nn

from ..backbones.spec import Backbone


LAYERDROP = "layerdrop"  # how the attributes end, some with the name of a stack in front
CHANGED = "_before_adapters"  # on the model: what was changed, (object, attribute, value)
MISSING = object()


def install_training_setup(model: nn.Module, backbone: Backbone) -> None:
    """Turn off what gets in the way; doing it again changes nothing more.

    Layers that are left out at random leave their adapters without gradient, which distributed training takes for an
    error or waits for, and `use_weighted_layer_sum` then lacks hidden states. And classifiers that average projected
    frames take any keyword arguments but ignore the number of clips of a whole step, by which the Trainer believes them
    to divide their loss: gradients would grow with the number of processes.
    """
    wanted = [
        (holder, name, 0.0)
        for holder in (model.config, *model.modules())
        for name, value in vars(holder).items()
        if name.endswith(LAYERDROP) and isinstance(value, float)
    ]
    if backbone.spec.frame_projection is not None:
        wanted.append((model, "accepts_loss_kwargs", False))
    changed = vars(model).setdefault(CHANGED, [])
    for holder, name, value in wanted:
        before = vars(holder).get(name, MISSING)
        if before is MISSING or before != value:
            changed.append((holder, name, before))
            setattr(holder, name, value)


def remove_training_setup(model: nn.Module) -> None:
    """Undo `install_training_setup`."""
    for holder, name, before in vars(model).pop(CHANGED, []):
        if before is MISSING:
            delattr(holder, name)
        else:
            setattr(holder, name, before)

"""How torch finds the attributes of a module, and which of its modules are random or change in training mode.

Relied upon: `nn.Module` keeps parameters apart from the object's `__dict__` and looks for them, and for its methods, only
after it; copies that `torch.nn.DataParallel` makes have `_is_replica`; all dropout and batch norm modules of `torch.nn`
are of the classes listed here.
"""

from __future__ import annotations

from typing import Any

from torch import nn


ABSENT = object()  # what stood in before where nothing did
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def install_stand_in(module: nn.Module, name: str, value: Any) -> Any:
    """Let the attribute `name` be `value`; the parameter or method of that name stays where it is, unseen.

    Returns:
        What stood in before, to be given to `remove_stand_in`.
    """
    before = module.__dict__.get(name, ABSENT)
    module.__dict__[name] = value
    return before


def remove_stand_in(module: nn.Module, name: str, before: Any = ABSENT) -> None:
    """Let the attribute `name` be the module's parameter or method again, or what stood in before."""
    if before is ABSENT:
        module.__dict__.pop(name, None)
    else:
        module.__dict__[name] = before


def is_batch_norm(module: nn.Module) -> bool:
    """Whether the module normalizes by its batch in training mode, and keeps running statistics of it."""
    return isinstance(module, BATCH_NORMS)


def drops_out(module: nn.Module) -> bool:
    """Whether the module sets some of what it is given to zero in training mode."""
    return isinstance(module, DROPOUTS) and module.p > 0


def is_replica(model: nn.Module) -> bool:
    """Whether the model is one of the copies that `torch.nn.DataParallel` makes for each pass."""
    return getattr(model, "_is_replica", False)

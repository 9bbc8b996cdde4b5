"""How torch finds the attributes of a module.

Relied upon: `nn.Module` keeps parameters apart from the object's `__dict__`, and looks for them only after it.
"""

from __future__ import annotations

import torch
from torch import nn


def install_stand_in(module: nn.Module, name: str, value: torch.Tensor) -> None:
    """Let the attribute `name` be `value`; the parameter of that name stays where it is, unseen."""
    module.__dict__[name] = value


def remove_stand_in(module: nn.Module, name: str) -> None:
    """Let the attribute `name` be the module's parameter again."""
    module.__dict__.pop(name, None)

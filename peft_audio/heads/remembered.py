"""Changes to a model that its configuration remembers, and that transformers' `from_pretrained` does not bring back."""

from __future__ import annotations

from typing import Any


def check_installed(model: Any, field: str, installed: bool, function: str, plain: str) -> bool:
    """Return `installed`: whether a change is there; or refuse a model whose configuration asks for it in vain.

    Args:
        model: a model of transformers.
        field: of its configuration, True for a model with the change.
        installed: whether the model has it.
        function: name of the public function that makes it.
        plain: how the model was loaded instead, for the error message.

    Raises:
        ValueError: if the configuration asks for it, but the model was loaded without.
    """
    if getattr(model.config, field, False) and not installed:
        raise ValueError(
            f"The configuration of this {type(model).__name__} has {field}=True, but the model was loaded {plain}. "
            f"Call peft_audio.{function}(model) first."
        )
    return installed

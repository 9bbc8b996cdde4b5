"""Putting a function around a method of a class of another library, once."""

from __future__ import annotations

import functools
from collections.abc import Callable


def replace_method(cls: type, name: str, wrapper: Callable[[Callable], Callable]) -> None:
    """Replace `cls.name` by `wrapper(method)`. Doing it again, as when a package is reloaded, puts no second one on."""
    original = getattr(cls, name)
    original = getattr(original, "_before_peft_audio", original)
    wrapped = functools.wraps(original)(wrapper(original))
    wrapped._before_peft_audio = original
    setattr(cls, name, wrapped)

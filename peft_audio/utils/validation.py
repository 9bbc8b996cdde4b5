"""Checks of values; each error names the field, the rule and the value received."""

from __future__ import annotations

from typing import Any

import torch


LARGEST_SIZE = 10**8
LARGEST = torch.finfo(torch.float32).max


def require(holds: bool, field: str, rule: str, value: Any) -> None:
    """Raise ValueError with "`field` must be <rule>, got <value>." unless `holds`."""
    if not holds:
        raise ValueError(f"`{field}` must be {rule}, got {value!r}.")


def is_integer(value: Any) -> bool:
    """Whether the value is an integer, and not a boolean."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether the value is an integer or a float, and not a boolean."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def require_positive_integer(field: str, value: Any) -> None:
    """Raise ValueError unless the value is an integer above 0."""
    require(is_integer(value) and value > 0, field, "a positive integer", value)


def require_size(field: str, value: Any) -> None:
    """Raise ValueError unless the value is an integer above 0 that torch takes as a size."""
    require_positive_integer(field, value)
    require(value <= LARGEST_SIZE, field, f"a positive integer of at most {LARGEST_SIZE}", value)


def require_probability(field: str, value: Any) -> None:
    """Raise ValueError unless the value is a number in [0, 1)."""
    require(is_number(value) and 0 <= value < 1, field, "a number in [0, 1)", value)


def require_finite_number(field: str, value: Any) -> None:
    """Raise ValueError unless the value is a number that is finite in float32.

    Adapters compute in float32. There, 0 times a number that is too large is NaN, not 0.
    """
    require(is_number(value) and abs(value) <= LARGEST, field, "a finite number in float32", value)


def require_boolean(field: str, value: Any) -> None:
    """Raise ValueError unless the value is True or False."""
    require(isinstance(value, bool), field, "True or False", value)


def require_choice(field: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless the value is one of the choices."""
    require(isinstance(value, str) and value in choices, field, "one of " + ", ".join(map(repr, choices)), value)

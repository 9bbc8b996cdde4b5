"""The methods and their options as arguments of a command line."""

from __future__ import annotations

from dataclasses import field, make_dataclass
from typing import Any

from .method_table import FIELD_NAMES, METHODS


# Options whose type is not that of the configuration's default.
OPTION_TYPES: dict[str, Any] = {"layers_to_transform": list[int], "sites": list[str], "reduction_factor": int}
OPTION_TYPES |= {"spatial_bottleneck_dim": int, "residual": bool}
OPTIONS = dict.fromkeys(option for row in METHODS.values() for option in row.options)


def _argument(option: str) -> tuple[str, Any, Any]:
    """Return a field of a configuration as an argument, which is None where it is left out."""
    config_class: Any = next(row.config_class for row in METHODS.values() if option in row.options)
    original = config_class.__dataclass_fields__[FIELD_NAMES.get(option, option)]
    kind = OPTION_TYPES.get(option, type(original.default))
    metadata = {"help": original.metadata.get("help", "")}
    metadata |= {"nargs": "?", "const": True} if kind is bool else {}  # "True" can be left out
    metadata["aliases"] = [f"--{FIELD_NAMES[option]}"] if option in FIELD_NAMES else []
    return option, kind | None, field(default=None, metadata=metadata)


def _given(arguments: Any) -> dict[str, Any]:
    """Return the options that were given, by name."""
    return {name: getattr(arguments, name) for name in OPTIONS if getattr(arguments, name) is not None}


_METHOD = ("method", str, field(metadata={"help": "What is trained.", "choices": sorted(METHODS)}))
MethodArguments = make_dataclass("MethodArguments", [_METHOD, *map(_argument, OPTIONS)], namespace={"options": _given})
"""A dataclass of the method and the options of all methods; its `options()` are those that were given."""


def fill_learning_rates(args: Any, method: str) -> None:
    """Give a method's own learning rates to the Trainer's arguments, where they were left out.

    Args:
        args: with `learning_rate` and `head_learning_rate`.
        method: its name in `METHODS`.
    """
    row, is_given = METHODS[method], args.learning_rate is not None
    args.learning_rate = args.learning_rate if is_given else row.learning_rate
    if args.head_learning_rate is None:
        args.head_learning_rate = args.learning_rate if is_given else row.head_learning_rate

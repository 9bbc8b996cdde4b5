"""The rules for base-model settings, which come from models and from the files of strangers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Optional

from ..utils.validation import is_integer, require


PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
INDEX = re.compile(r"0|[1-9][0-9]{0,8}")
# Of an input in frames, tokens or pixels. A number from a file would else ask for any amount of memory.
LARGEST_SIZE = 100_000
LARGEST_VOCABULARY = 1_000_000
MOST_HEAD_FIELDS = 50
MOST_RESIZES = 100
RESIZE_FIELDS = {"max_length", "time_stride", "frequency_stride"}
Rule = tuple[str, Callable[[Any], bool]]


def normal_settings(settings: Any, holder: str = "base_settings") -> Optional[dict[str, Any]]:
    """Return base-model settings with labels in the form of `normal_labels`.

    Args:
        settings: as in a checkpoint, or None. Settings without a rule are kept as they are.
        holder: what errors call that which has the settings.

    Raises:
        ValueError: a setting has a value that no model has.
    """
    require(settings is None or isinstance(settings, dict), holder, "None or a dictionary", settings)
    if settings is None:
        return None
    for name, (rule, holds) in RULES.items():
        value = settings.get(name)
        require(value is None or holds(value), holder, f"such that {name} is {rule}", value)
    labels = settings.get("id2label")
    if labels is None:
        return dict(settings)
    return {**settings, "id2label": normal_labels(labels, holder)}


def normal_labels(id2label: Any, holder: str) -> dict[str, str]:
    """Return labels by index, in order, as JSON keeps them; labels that are numbers become text.

    Args:
        id2label: a mapping from indices, integers or their digits, or a sequence.
        holder: what errors call that which has the labels.

    Raises:
        ValueError: if the indices are not 0, 1, 2, ..., each once, or a label is neither text nor a number.
    """
    rule = "such that id2label is label names by index, the indices 0, 1, 2, ... each once"
    require(isinstance(id2label, (Mapping, list, tuple)), holder, rule, id2label)
    items = list(id2label.items()) if isinstance(id2label, Mapping) else list(enumerate(id2label))
    indices = [_index(key) for key, _ in items]
    require(sorted(indices) == list(range(len(items))), holder, rule, id2label)
    labels = {index: _text(label) for index, (_, label) in zip(indices, items)}
    rule = "such that id2label is labels that are text or numbers"
    require(None not in labels.values(), holder, rule, id2label)
    return {str(index): str(labels[index]) for index in sorted(labels)}


def _index(key: Any) -> int:
    if isinstance(key, str):
        return int(key) if INDEX.fullmatch(key) else -1
    key = key.item() if hasattr(key, "item") else key
    return key if is_integer(key) else -1


def _text(label: Any) -> Optional[str]:
    """Return the label as text; None for what is no label."""
    label = label.item() if hasattr(label, "item") and getattr(label, "ndim", 1) == 0 else label
    return str(label) if label is None or isinstance(label, (str, bool, int, float)) else None


def _is_size(value: Any) -> bool:
    return is_integer(value) and 0 < value <= LARGEST_SIZE


def _is_bounded(value: Any) -> bool:
    return is_integer(value) and value <= LARGEST_SIZE


def _is_image_size(value: Any) -> bool:
    return all(map(_is_size, value)) and len(value) == 2 if isinstance(value, list) else _is_size(value)


def _are_resizes(value: Any) -> bool:
    is_list = isinstance(value, list) and len(value) <= MOST_RESIZES
    return is_list and all(
        isinstance(step, dict) and set(step) <= RESIZE_FIELDS and all(map(_is_bounded, step.values()))
        for step in value
    )


def _is_head(value: Any) -> bool:
    return isinstance(value, dict) and len(value) <= MOST_HEAD_FIELDS and all(map(_is_of_head, value.values()))


def _is_of_head(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) <= MOST_HEAD_FIELDS and all(map(_is_of_head, value))
    return value is None or isinstance(value, (bool, str)) or (is_integer(value) and abs(value) <= LARGEST_VOCABULARY)


_SIZE: Rule = (f"an integer from 1 to {LARGEST_SIZE}", _is_size)
_SWITCH: Rule = ("True or False", lambda value: isinstance(value, bool))
_NAME: Rule = ("a name", lambda value: isinstance(value, str))
RULES: dict[str, Rule] = {
    "auto_class": ("a name such as AutoModelForCTC", lambda value: bool(re.fullmatch(r"AutoModelFor\w+", str(value)))),
    "head": (f"at most {MOST_HEAD_FIELDS} texts, switches and integers up to {LARGEST_VOCABULARY} by name", _is_head),
    "model_type": _NAME,
    "problem_type": ("one of " + ", ".join(map(repr, PROBLEM_TYPES)), lambda value: value in PROBLEM_TYPES),
    "statistics_pooling": _SWITCH,
    "mean_token_pooling": _SWITCH,
    "padding_mask": _SWITCH,
    "use_weighted_layer_sum": _SWITCH,
    "max_length": _SIZE,
    "num_mel_bins": _SIZE,
    "time_stride": _SIZE,
    "frequency_stride": _SIZE,
    "max_source_positions": _SIZE,
    "image_size": (f"one or two integers from 1 to {LARGEST_SIZE}", _is_image_size),
    "ast_resizes": (
        f"a list of at most {MOST_RESIZES} steps with {', '.join(sorted(RESIZE_FIELDS))}, integers up to {LARGEST_SIZE}",
        _are_resizes,
    ),
}

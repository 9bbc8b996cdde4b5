"""Which values the options of a data set's reader take: told before its folder is read."""

from collections.abc import Container, Mapping
from typing import Any


class OneOf(tuple):
    """The values that an option takes. None is null in YAML."""

    def __str__(self) -> str:
        return "one of " + ", ".join("null" if value is None else str(value) for value in self)


class FileName:
    """The name of a file in the data set's folder."""

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, str) and bool(value.strip())

    def __str__(self) -> str:
        return "the name of a file"


def check_options(options: Mapping[Any, Any], rules: Mapping[str, Container]) -> None:
    """Check the options of a reader.

    Args:
        options: as a recipe has them.
        rules: by option, the values that it takes.

    Raises:
        ValueError: there is no such option, or it does not take the value.
    """
    for name, value in options.items():
        if name not in rules:
            raise ValueError(f"there is no option {name!r}, the options are {', '.join(rules) or 'none'}.")
        if value not in rules[name]:
            raise ValueError(f"{name} must be {rules[name]}, got {value!r}.")

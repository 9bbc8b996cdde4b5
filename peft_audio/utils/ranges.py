"""Which numbers an argument takes: checked before anything is read, and told in one line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Union


@dataclass(frozen=True)
class Range:
    """The numbers that an argument takes.

    It is a `type` of argparse too: `parser.add_argument("--epochs", type=Range(1, 100, whole=True))`.

    Args:
        low: the lowest.
        high: the highest; infinity: any that is finite.
        whole: only whole numbers.
        above: more than `low`.
        below: less than `high`.
        optional: None too.
    """

    low: float = 0
    high: float = math.inf
    whole: bool = False
    above: bool = False
    below: bool = False
    optional: bool = False

    def __contains__(self, value: Any) -> bool:
        if value is None:
            return self.optional
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        # NaN is not within any bounds.
        is_low = value == self.low and self.above
        is_high = value == self.high and (self.below or math.isinf(value))
        return self.low <= value <= self.high and not is_low and not is_high

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        low = f"above {self.low:,}" if self.above else f"from {self.low:,}"
        if math.isinf(self.high):
            return f"{kind} {low}" if self.above else f"{kind} {low} up"
        if self.below:
            return f"{kind} {low} and below {self.high:,}"
        return f"{kind} {low}, at most {self.high:,}" if self.above else f"{kind} {low} to {self.high:,}"

    def check(self, name: str, value: Any) -> None:
        """Check the argument of this name.

        Raises:
            ValueError: it is not in the range.
        """
        if value not in self:
            raise ValueError(f"{name} must be {self}, got {value!r}.")

    def __call__(self, text: str) -> Union[int, float]:
        """Return the number in a text of the command line."""
        try:
            value: Any = int(text) if self.whole else float(text)
        except ValueError:
            value = math.nan
        if value not in self:
            raise argparse.ArgumentTypeError(f"must be {self}, got {text!r}")
        return value


COUNT = Range(1, 1_000_000, whole=True)  # more than any computer holds or gets done
SEED = Range(0, 2**32 - 1, whole=True)  # what numpy takes


def check_ranges(arguments: Any, ranges: Mapping[str, Range]) -> None:
    """Check the fields of `arguments` that are in `ranges`, by name.

    Raises:
        ValueError: a field is not in its range; names the field, the range and the value.
    """
    for name, wanted in ranges.items():
        wanted.check(name, getattr(arguments, name))

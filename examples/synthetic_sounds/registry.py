"""The registries of sources and temporal patterns, and the decorators that fill them."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Source(NamedTuple):
    """How one source type is rendered.

    `kind` says how the source meets a temporal pattern: "sustained" sources last the whole clip and are shaped by an
    envelope, "event" sources are short and placed at onsets, "paced" sources have a rhythm of their own and are only
    faded or modulated.
    """

    render: Callable[[np.random.Generator, int], np.ndarray]
    kind: str
    held_out: bool


class Pattern(NamedTuple):
    """How one temporal pattern is made: `envelope(rng, num_samples)` for gradual patterns, `onsets(rng, seconds)` for
    rhythmic ones. Exactly one of the two is set."""

    envelope: Callable[[np.random.Generator, int], np.ndarray] | None
    onsets: Callable[[np.random.Generator, float], np.ndarray] | None
    held_out: bool


ALL_SOURCES: dict[str, Source] = {}
ALL_PATTERNS: dict[str, Pattern] = {}


def source(kind: str, held_out: bool = False):
    def register(function):
        ALL_SOURCES[function.__name__.removeprefix("_")] = Source(function, kind, held_out)
        return function

    return register


def envelope(function=None, *, held_out: bool = False):
    def register(function):
        ALL_PATTERNS[function.__name__.removeprefix("_")] = Pattern(function, None, held_out)
        return function

    return register if function is None else register(function)


def onsets(function=None, *, held_out: bool = False):
    def register(function):
        ALL_PATTERNS[function.__name__.removeprefix("_")] = Pattern(None, function, held_out)
        return function

    return register if function is None else register(function)

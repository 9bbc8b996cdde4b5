"""State that hooks leave for each other while a model runs, without getting in the way of other threads."""

from __future__ import annotations

import threading


class PerThread(threading.local):
    """Base class of what belongs to one forward pass: every thread that runs the model has its own. Copies are empty."""

    def __deepcopy__(self, memo: dict) -> PerThread:
        return type(self)()

    def __reduce__(self) -> tuple:
        return type(self), ()

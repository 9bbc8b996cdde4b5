"""Which calls of a module a thread is running, for hooks inside that need to know what the module was given."""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import Generic, NamedTuple, Optional, TypeVar

import torch
from torch import nn


T = TypeVar("T")


class RunningCall(NamedTuple, Generic[T]):
    """One call: its module, what a hook keeps of it, and the Python frame that it runs in, None while compiling."""

    module: nn.Module
    kept: T
    frame: Optional[FrameType]


class RunningCalls(threading.local, Generic[T]):
    """The calls that a thread is running, innermost last, for two hooks of a module: `enter` before it, `leave` after it.

    torch does not call hooks after an interrupt (Ctrl-C), so calls whose Python frame is gone are left out.
    """

    def __init__(self) -> None:
        """Make the state of a thread that runs no call."""
        self._calls: list[RunningCall[T]] = []

    def enter(self, module: nn.Module, kept: T) -> None:
        """To be called by a forward pre-hook of `module`."""
        self._drop_interrupted()
        self._calls.append(RunningCall(module, kept, _frame_of_call()))

    def leave(self, module: nn.Module) -> None:
        """To be called by a forward hook of `module` that runs after errors too."""
        self._drop_interrupted()  # after an error, the call's frame is gone
        if self._calls and self._calls[-1].module is module and self._calls[-1].frame is _frame_of_call():
            self._calls.pop()

    def innermost(self) -> Optional[RunningCall[T]]:
        """Return the innermost call, None outside of all."""
        self._drop_interrupted()
        return self._calls[-1] if self._calls else None

    def _drop_interrupted(self) -> None:
        if torch.compiler.is_compiling():
            return
        while self._calls and not _is_running(self._calls[-1].frame):
            self._calls.pop()


def _frame_of_call() -> Optional[FrameType]:
    """Return the frame that called the hook that called `enter` or `leave`: the one of the module's call."""
    return None if torch.compiler.is_compiling() else sys._getframe(3)


def _is_running(frame: Optional[FrameType]) -> bool:
    running: Optional[FrameType] = sys._getframe(1)
    while running is not None and running is not frame:
        running = running.f_back
    return running is not None or frame is None

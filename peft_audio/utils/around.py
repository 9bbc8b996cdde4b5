"""Functions that run around the forward pass of a module.

Hooks come in pairs, and the second one does not run after Ctrl-C: torch calls hooks after an Exception at most. A function
around the forward pass has its `finally`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import CodeType, MethodType
from typing import Any, Union

from torch import nn


# `(forward, module, args, kwargs) -> output`: calls `forward(*args, **kwargs)`. A bound method, or a function that can be pickled.
Wrapper = Callable[[Callable[..., Any], Any, tuple, dict[str, Any]], Any]


class Around:
    """Stands in the place of a module's `forward`, with wrappers around it, outermost first.

    Args:
        module: the module.
        inner: what stood in the place of its class's `forward` before; None for nothing.
    """

    def __init__(self, module: nn.Module, inner: Any = None) -> None:
        self.module = module
        self.inner = inner
        self.wrappers: list[Wrapper] = []

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """What is wrapped; `inspect` takes the signature from it."""
        return MethodType(type(self.module).forward, self.module) if self.inner is None else self.inner

    @property
    def __code__(self) -> CodeType:
        """For `torch.export`, which says with it where a program comes from."""
        return type(self).__call__.__code__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module, within its wrappers."""
        return self._run(0, args, kwargs)

    def _run(self, depth: int, args: tuple, kwargs: dict[str, Any]) -> Any:
        if depth == len(self.wrappers):
            if self.inner is not None:
                return self.inner(*args, **kwargs)
            return type(self.module).forward(self.module, *args, **kwargs)

        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._run(depth + 1, args, kwargs)

        return self.wrappers[depth](forward, self.module, args, kwargs)


def wrap_forward(module: nn.Module, wrapper: Wrapper, outermost: bool = False) -> None:
    """Run `wrapper` around the module's forward pass, within those that are there, or around them."""
    around = next(_arounds(module), None)
    if around is None:
        around = Around(module, vars(module).get("forward"))
        vars(module)["forward"] = around  # not by `setattr`, which some modules pass on
    around.wrappers.insert(0 if outermost else len(around.wrappers), wrapper)


def owners_of_wrappers(module: nn.Module) -> Iterator[Any]:
    """Yield the object of every wrapper that is a bound method."""
    for around in _arounds(module):
        for wrapper in around.wrappers:
            if hasattr(wrapper, "__self__"):
                yield wrapper.__self__


def unwrap_forward(model: nn.Module, owner: Union[type, object]) -> list[Any]:
    """Remove every wrapper, in the model and its submodules, that is a method of `owner`, an object or a class.

    Returns:
        The objects whose wrappers were removed, one entry a wrapper.
    """
    removed = []
    for module in model.modules():
        for around in list(_arounds(module)):
            for wrapper in list(around.wrappers):
                if belongs_to(wrapper, owner):
                    removed.append(wrapper.__self__)  # type: ignore[attr-defined] # a bound method
                    around.wrappers.remove(wrapper)
            if not around.wrappers:
                _take_out(module, around)
    return removed


def belongs_to(function: Any, owner: Union[type, object]) -> bool:
    """Whether a function is a method of `owner`, an object, or of an object of that class."""
    of_function = getattr(function, "__self__", None)
    return of_function is owner or isinstance(owner, type) and isinstance(of_function, owner)


def _arounds(module: nn.Module) -> Iterator[Around]:
    """Yield what stands in the place of the module's `forward`; other libraries put their own around it."""
    forward = vars(module).get("forward")
    while forward is not None:
        if isinstance(forward, Around):
            yield forward
            forward = forward.inner
        else:
            forward = getattr(forward, "__wrapped__", None)


def _take_out(module: nn.Module, around: Around) -> None:
    if vars(module).get("forward") is not around:
        return  # another library's function has it: without wrappers it changes nothing
    if around.inner is None:
        del vars(module)["forward"]
    else:
        vars(module)["forward"] = around.inner

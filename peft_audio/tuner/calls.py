"""The arguments of one call of a module, by name, whether they were given by position or by keyword."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

from torch import nn


def parameter_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters of a module's forward."""
    return tuple(inspect.signature(module.forward).parameters)


class Call(NamedTuple):
    """One call of a module.

    Attributes:
        names: names of the module's parameters, in order.
        args: what was given by position.
        kwargs: what was given by keyword.
    """

    names: tuple[str, ...]
    args: tuple
    kwargs: dict[str, Any]

    @property
    def arguments(self) -> dict[str, Any]:
        """All arguments by name."""
        return dict(zip(self.names, self.args)) | self.kwargs

    def get(self, name: str) -> Any:
        """Return an argument, None where it was not given."""
        return self.arguments.get(name)

    def replace(self, name: str, value: Any) -> Call:
        """Return the call with another value for one argument."""
        if name in self.names[: len(self.args)]:
            index = self.names.index(name)
            return self._replace(args=(*self.args[:index], value, *self.args[index + 1 :]))
        return self._replace(kwargs={**self.kwargs, name: value})

    def replace_object(self, old: Any, new: Any) -> Call:
        """Return the call with `new` wherever it has the object `old`, as fairseq gives query, key and value."""
        args = tuple(new if value is old else value for value in self.args)
        kwargs = {name: new if value is old else value for name, value in self.kwargs.items()}
        return self._replace(args=args, kwargs=kwargs)

"""Which fields of a configuration the package fills in when an adapter is put on a model.

The model keeps the caller's object, as PEFT does, so that what is changed in it later is saved. What is filled in belongs to
that model: for another one, a copy starts from what the caller gave.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


GIVEN = "_as_given"  # on a configuration in use: the fields as the caller gave them


def fresh_config(config: Any) -> Any:
    """Return the configuration itself the first time, then copies of it as it was given."""
    given = vars(config).get(GIVEN)
    if given is None:
        return config
    fresh = copy.deepcopy(config)
    del vars(fresh)[GIVEN]
    for name, value in given.items():
        setattr(fresh, name, value)
    return fresh


@contextmanager
def filled_in(config: Any) -> Iterator[None]:
    """Within, fields of the configuration are filled in; an error takes that back."""
    given = {name: copy.deepcopy(getattr(config, name)) for name in config.filled_in}
    try:
        yield
    except BaseException:
        for name, value in given.items():
            setattr(config, name, value)
        raise
    vars(config)[GIVEN] = given

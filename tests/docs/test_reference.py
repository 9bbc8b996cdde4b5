"""Every public name has its entry in the API reference."""

import importlib
import re

import pytest
from site_pages import DOCS


ENTRY = re.compile(r"^::: (peft_audio\S*)$", re.MULTILINE)
ENTRIES = [name for path in (DOCS / "reference").glob("*.md") for name in ENTRY.findall(path.read_text("utf-8"))]
MODULES = ("peft_audio", *(f"peft_audio.{name}" for name in ("data", "methods", "metrics", "modules", "trainer")))


def public_names(module):
    """The names of `__all__`; without one, the functions and classes that are defined there."""
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    return getattr(module, "__all__", None) or [name for name in own if not name.startswith("_")]


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_in_the_reference(name):
    names = {f"{name}.{public}" for public in public_names(importlib.import_module(name))}
    missing = sorted(names - set(ENTRIES))
    assert names and not missing, f"docs/reference has no entry `::: NAME` of {missing}"


def test_no_entry_is_of_something_else_or_twice():
    assert len(ENTRIES) == len(set(ENTRIES))
    for entry in ENTRIES:
        module, _, name = entry.rpartition(".")
        assert module in MODULES and name in public_names(importlib.import_module(module)), entry

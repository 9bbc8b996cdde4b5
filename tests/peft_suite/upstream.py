"""PEFT's own test files, importable as the package `peft_tests` from where `make test-peft` unpacked them."""

import importlib
import os
import sys
import types
from pathlib import Path


FOLDER = Path(os.environ.get("PEFT_SUITE", Path(__file__).parents[2] / ".venv" / "peft_suite"))
PACKAGE = "peft_tests"


def upstream(name):
    """A module of PEFT's `tests` folder, which has no `__init__.py` but imports its neighbors relatively."""
    if PACKAGE not in sys.modules:
        package = types.ModuleType(PACKAGE)
        package.__path__ = [str(FOLDER / "peft" / "tests")]
        sys.modules[PACKAGE] = package
        sys.path.append(str(FOLDER / "packages"))  # what the files import and the package does not need
    return importlib.import_module(f"{PACKAGE}.{name}")

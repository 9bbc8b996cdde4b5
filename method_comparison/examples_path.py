"""Importing this makes the modules of `examples/` importable: the scripts here train with the same functions."""

import sys
from pathlib import Path


EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.append(str(EXAMPLES))

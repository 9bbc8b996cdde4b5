"""A method and a backbone from outside of the package run through the suite that the package's own run through."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


TESTS = Path(__file__).parent
# The package's methods on the toy backbone, and the toy's method on a typical backbone of each kind.
CELLS = ["toy-", "[ast-global_mean or [wav2vec2-stable-global_mean or [wavlm-global_mean"]


@pytest.mark.parametrize("cells", CELLS)
def test_the_matrix_runs_over_a_toy_method_and_a_toy_backbone(cells):
    paths = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "toys", str(TESTS / "test_matrix.py"), "-k", cells],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert result.returncode == 0, result.stdout[-3000:]
    assert " passed" in result.stdout and "failed" not in result.stdout

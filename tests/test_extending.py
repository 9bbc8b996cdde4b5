"""A method and a backbone from outside of the package run through the suite that the package's own run through."""

import subprocess
import sys
from pathlib import Path

import pytest


TESTS = Path(__file__).parent
# Enough to see that it is the suite; toy with everything, and the toy's method on a typical backbone of each kind.
CELLS = "toy- or -global_mean] and (ast or wav2vec2- or whisper) or toy-global_mean"


def run(*arguments):
    command = [sys.executable, "-m", "pytest", "-p", "toys", "-p", "no:xdist", *arguments]
    return subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, env=environment())


def environment():
    import os

    paths = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@pytest.mark.parametrize("cells", ["toy-", "[global_mean-ast or [global_mean-wav2vec2-stable"])
def test_the_matrix_runs_over_a_toy_method_and_a_toy_backbone(cells):
    result = run(str(TESTS / "test_matrix.py"), "-k", cells)
    assert result.returncode == 0, result.stdout[-3000:]
    assert " passed" in result.stdout and "failed" not in result.stdout

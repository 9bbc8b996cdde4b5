"""A method and a backbone from outside of the package run through the suite that the package's own run through."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from peft import get_peft_model
from tiny import make, make_inputs, randomize, same


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


def test_the_method_in_the_readme_works():
    text = (TESTS.parent / "README.md").read_text("utf-8")
    section = text[text.index("### Your own method") :]
    names = {}
    exec(section.split("```python\n")[1].split("```")[0], names)
    model = randomize(get_peft_model(make("ast"), names["GateConfig"]()))
    expected = model(**make_inputs("ast"), output_hidden_states=True).logits
    assert same(model(**make_inputs("ast")).logits, expected)
    with model.disable_adapter():
        assert not same(model(**make_inputs("ast")).logits, expected)

"""The notebooks of the site: their cells run from the first to the last, and each is what its script makes."""

import contextlib
import importlib.util
import io
import json
import math
import sys

import pytest
import torch
from notebook_cells import default_parameters, run_cells
from site_pages import DOCS, become_reader, prepare

from peft_audio import AutoPeftModelForAudioClassification


HOWTO = DOCS / "howto"
SCRIPTS = {path.stem: path for path in sorted(HOWTO.glob("*.py")) if path.name != "make.py"}
FEWER = {"tag_sounds": {"MIXTURES": 40}, "recognize_speech": {"NEW_TOKENS": 5}}
ADAPTERS = {
    "adapt_an_image_model": "from-images-adapter",
    "classify_sounds": "sounds-adapter",
    "recognize_emotion": "emotion-adapter",
    "spot_keywords": "keywords-adapter",
    "verify_speakers": "speakers-adapter",
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("prepared"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_cells_run(name, prepared, tmp_path, monkeypatch):
    become_reader(prepared, tmp_path, monkeypatch)
    parameters = {"EPOCHS": 1, **FEWER.get(name, {})}
    assert parameters.keys() <= default_parameters(SCRIPTS[name]).keys()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        variables = run_cells(SCRIPTS[name], parameters)
    assert printed.getvalue()
    for key, value in variables.get("results", {}).items():
        assert not isinstance(value, float) or math.isfinite(value), key
    if name in ADAPTERS:
        check_saved(variables["model"], variables["trainer"], variables["data"].test, tmp_path / ADAPTERS[name])


def check_saved(model, trainer, clips, folder):
    """The adapter that a notebook leaves gives what its model gives."""
    inputs = trainer.data_collator([clips[0], clips[1]])
    inputs.pop("labels")
    loaded = AutoPeftModelForAudioClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        torch.testing.assert_close(loaded(**inputs).logits, model.eval()(**inputs).logits)


def load_make():
    spec = importlib.util.spec_from_file_location("make_notebooks", HOWTO / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_notebooks_are_what_the_scripts_make(monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path[:])  # the script adds to it
    made = {script.stem: load_make().notebook_of(script) for script in SCRIPTS.values()}
    assert made == {path.stem: path.read_text(encoding="utf-8") for path in HOWTO.glob("*.ipynb")}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_notebook_starts_with_its_title(name):
    cells = json.loads((HOWTO / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    assert cells[0]["cell_type"] == "markdown" and cells[0]["source"][0].startswith("# ")
    assert all(cell.get("outputs", []) == [] for cell in cells)

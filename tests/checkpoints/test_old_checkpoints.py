"""Checkpoints that an earlier version wrote give the logits that they gave then."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from refusals import edit
from safetensors.torch import load_file
from transformers import AutoModelForAudioClassification

from peft_audio import AutoPeftModelForAudioClassification, resize_ast


CHECKPOINTS = Path(__file__).parent / "old_checkpoints"
each_family = pytest.mark.parametrize("family", ["prompts", "convolutions"])


@pytest.fixture
def folder(family, tmp_path):
    """A copy whose adapter names the base model beside it."""
    shutil.copytree(CHECKPOINTS / family, tmp_path, dirs_exist_ok=True)
    edit(tmp_path / "adapter", base_model_name_or_path=str(tmp_path / "base"))
    return tmp_path


def check(model, folder):
    inputs = load_file(folder / "expected.safetensors")
    expected = inputs.pop("logits")
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(**inputs).logits, expected, atol=1e-5, rtol=1e-5)
        with model.disable_adapter():
            assert not torch.allclose(model(**inputs).logits, expected, atol=1e-2)


@each_family
def test_in_one_line(family, folder):
    check(AutoPeftModelForAudioClassification.from_pretrained(folder / "adapter"), folder)


@each_family
def test_onto_a_base_model_that_was_loaded_before(family, folder):
    base = AutoModelForAudioClassification.from_pretrained(folder / "base")
    if family == "convolutions":
        resize_ast(base, max_length=60)
    check(PeftModel.from_pretrained(base, folder / "adapter"), folder)


@each_family
def test_saved_again_the_tensors_have_the_same_names(family, folder, tmp_path):
    model = AutoPeftModelForAudioClassification.from_pretrained(folder / "adapter")
    model.save_pretrained(tmp_path / "again")
    before, after = (
        load_file(place / "adapter_model.safetensors") for place in (folder / "adapter", tmp_path / "again")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)

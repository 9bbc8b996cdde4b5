"""The dtype of the base model in training, which the auto class brings back."""

import pytest
import torch
from peft import get_peft_model
from tiny import METHODS, make

from peft_audio import AutoPeftModelForAudioClassification, load_classifier


@pytest.fixture
def base_folder(tmp_path):
    make("whisper").half().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_is_that_of_the_training_unless_the_caller_says(dtype, base_folder, tmp_path):
    model = get_peft_model(load_classifier(base_folder, list("abcde"), dtype=dtype), METHODS["ipet"]())
    model.save_pretrained(tmp_path / "adapter")
    again = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter")
    assert again.get_base_model().dtype == dtype
    other = torch.float32 if dtype == torch.float16 else torch.float16
    asked = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter", dtype=other)
    assert asked.get_base_model().dtype == other


@torch.no_grad()
def test_the_logits_come_back_from_a_checkpoint_in_half_precision(base_folder, tmp_path):
    model = load_classifier(base_folder, list("abcde"))
    assert model.dtype == torch.float32
    model = get_peft_model(model, METHODS["ipet"]()).eval()
    model.save_pretrained(tmp_path / "adapter")
    again = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter")
    features = torch.randn(2, 12, 28)
    torch.testing.assert_close(again(features).logits, model(features).logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize("written", [None, "float8", 7])
def test_settings_without_a_known_one_leave_the_checkpoints(written, base_folder, tmp_path):
    model = get_peft_model(load_classifier(base_folder, list("abcde")), METHODS["ipet"]())
    model.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(
        path.read_text().replace(
            '"dtype": "float32"', f'"dtype": {"null" if written is None else repr(written).replace(chr(39), chr(34))}'
        )
    )
    assert (
        AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter").get_base_model().dtype
        == torch.float16
    )

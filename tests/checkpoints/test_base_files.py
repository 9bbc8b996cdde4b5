"""An adapter in the folder of its base model."""

import pytest
import torch
from adapted import logits
from peft import LoraConfig, get_peft_model
from tiny import BACKBONES, METHODS, randomize
from transformers import AutoModelForAudioClassification

from peft_audio import AutoPeftModelForAudioClassification


def lora():
    return LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])


def save_together(backbone, config, folder):
    BACKBONES[backbone]().save_pretrained(folder)
    model = randomize(get_peft_model(AutoModelForAudioClassification.from_pretrained(folder), config))
    model.save_pretrained(folder)
    return logits(model.eval(), backbone)


@pytest.mark.parametrize("backbone", ["ast", "wav2vec2", "whisper"])
@pytest.mark.parametrize("method", ["ipet", "input_prompt", "lora"])
def test_an_adapter_beside_its_base_model_is_loaded(backbone, method, tmp_path):
    expected = save_together(backbone, lora() if method == "lora" else METHODS[method](), tmp_path)
    model = AutoPeftModelForAudioClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(model, backbone), expected)
    assert list(model.peft_config) == ["default"]
    assert model.get_base_model().name_or_path == str(tmp_path) == model.config._name_or_path
    model.save_pretrained(tmp_path / "again")
    again = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(logits(again, backbone), expected)


def test_another_adapter_than_that_beside_the_base_model_is_loaded(tmp_path):
    save_together("ast", METHODS["time_freq_conv"](), tmp_path / "base")
    base = BACKBONES["ast"]()
    base.name_or_path = str(tmp_path / "base")
    model = randomize(get_peft_model(base, METHODS["ipet"]()), seed=3)
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(loaded, "ast"), logits(model.eval(), "ast"))

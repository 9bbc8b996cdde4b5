"""Base models whose weights accelerate keeps elsewhere: adapters go on before that."""

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from adapted import adapted, logits, two_methods
from peft import PeftModel, get_peft_model
from tiny import BACKBONES, METHODS, randomize
from transformers import AutoModelForAudioClassification

from peft_audio import AutoPeftModelForAudioClassification


def on_cpu(model, folder):
    return cpu_offload(model, execution_device="cpu")


def on_disk(model, folder):
    return disk_offload(model, str(folder), execution_device="cpu")


each_offload = pytest.mark.parametrize("offload", [on_cpu, on_disk])
each_backbone = pytest.mark.parametrize("backbone", ["ast", "wav2vec2", "whisper"])
REFUSED = "must be in memory, but accelerate offloads some of this .*put the adapter on, and offload the whole then"


@each_backbone
@pytest.mark.parametrize("method", ["ipet", "input_prompt", "time_freq_conv", "bottleneck_sequential"])
@each_offload
def test_a_model_that_is_offloaded_with_its_adapter_gives_the_same(backbone, method, offload, tmp_path):
    model = randomize(adapted(backbone, METHODS[method]()))
    expected = logits(model, backbone)
    offload(model, tmp_path)
    assert torch.equal(logits(model, backbone), expected)


@two_methods
@each_offload
def test_an_adapter_on_an_offloaded_model_is_refused(method, offload, tmp_path):
    model = offload(BACKBONES["wav2vec2"](), tmp_path)
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(ValueError, match=REFUSED):
        get_peft_model(model, METHODS[method]())
    assert [name for name, _ in model.named_modules()] == names


@two_methods
def test_an_adapter_on_a_device_map_with_a_disk_is_refused(method, tmp_path):
    BACKBONES["ast"]().save_pretrained(tmp_path / "base")
    base = AutoModelForAudioClassification.from_pretrained(tmp_path / "base")
    get_peft_model(base, METHODS[method]()).save_pretrained(tmp_path / "adapter")
    options = {
        "device_map": {"audio_spectrogram_transformer": "disk", "classifier": "cpu"},
        "offload_folder": str(tmp_path / "weights"),
    }
    with pytest.raises(ValueError, match=REFUSED):
        AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter", **options)
    offloaded = AutoModelForAudioClassification.from_pretrained(tmp_path / "base", **options)
    with pytest.raises(ValueError, match=REFUSED):
        offloaded.load_adapter(str(tmp_path / "adapter"))
    with pytest.raises(ValueError, match=REFUSED):
        PeftModel.from_pretrained(offloaded, tmp_path / "adapter", offload_folder=str(tmp_path / "weights"))
    whole = {"device_map": {"": "cpu"}}
    model = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter", **whole)
    assert logits(model, "ast").isfinite().all()

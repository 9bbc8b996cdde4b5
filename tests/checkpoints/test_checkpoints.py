"""Checkpoints: what is in the file, what comes back, and what happens to a damaged one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import BACKBONES, METHODS, each_method, each_typical_backbone, make_ast, make_inputs, randomize, trainable

from peft_audio import AutoPeftModelForAudioClassification, IPETConfig


WEIGHTS = "adapter_model.safetensors"
LOADER = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from tiny import BACKBONES, make_inputs
from peft import PeftModel
model = PeftModel.from_pretrained(BACKBONES[sys.argv[2]](), sys.argv[3])
torch.save(model(**make_inputs(sys.argv[2])).logits.detach(), sys.argv[4])
"""


def saved(backbone, method, folder, **options):
    model = randomize(get_peft_model(BACKBONES[backbone](), METHODS[method](**options))).eval()
    model.save_pretrained(folder)
    return model


def logits(model, backbone):
    with torch.no_grad():
        return model(**make_inputs(backbone)).logits


@each_typical_backbone
@each_method
def test_the_file_holds_the_trained_tensors_and_nothing_else(backbone, method, tmp_path):
    model = saved(backbone, method, tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    statistics = {name: value for name, value in model.named_buffers() if ".batch_norm." in name}
    assert bool(statistics) == (method == "conformer")
    parameters = trainable(model) | statistics
    assert sorted(value.shape for value in stored.values()) == sorted(value.shape for value in parameters.values())
    num_parameters = sum(value.numel() for value in parameters.values())
    assert sum(value.numel() for value in stored.values()) == num_parameters
    assert (tmp_path / WEIGHTS).stat().st_size <= 4 * num_parameters + 64 * 1024
    # No name of the backbone's encoder, and none of the adapter, in the keys.
    assert not [key for key in stored if "encoder" in key or "transformer" in key or "default" in key]


@each_typical_backbone
@each_method
@pytest.mark.parametrize("adapter_name", ["default", "other"])
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_reloading_gives_the_same_logits(backbone, method, adapter_name, low_cpu_mem_usage, tmp_path):
    expected = logits(saved(backbone, method, tmp_path), backbone)
    model = PeftModel.from_pretrained(
        BACKBONES[backbone](), tmp_path, adapter_name=adapter_name, low_cpu_mem_usage=low_cpu_mem_usage
    )
    # Tensors that stay in the file's memory begin anywhere, and are multiplied in another order.
    torch.testing.assert_close(logits(model, backbone), expected, atol=1e-6 if low_cpu_mem_usage else 0, rtol=0)
    assert not trainable(model)


@each_typical_backbone
def test_reloading_in_another_process_gives_the_same_logits(backbone, tmp_path):
    expected = logits(saved(backbone, "joint", tmp_path / "adapter"), backbone)
    here = str(Path(__file__).parents[1])
    arguments = [here, backbone, str(tmp_path / "adapter"), str(tmp_path / "logits.pt")]
    subprocess.run([sys.executable, "-c", LOADER, *arguments], check=True, capture_output=True)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)


@each_typical_backbone
def test_training_goes_on_after_reloading(backbone, tmp_path):
    model = saved(backbone, "ipet", tmp_path)
    again = PeftModel.from_pretrained(BACKBONES[backbone](), tmp_path, is_trainable=True)
    assert trainable(again).keys() == trainable(model).keys()
    assert all(torch.equal(value, trainable(model)[name]) for name, value in trainable(again).items())


@each_typical_backbone
def test_a_second_adapter_loads_beside_the_first(backbone, tmp_path):
    first = saved(backbone, "ipet", tmp_path / "first")
    second = randomize(get_peft_model(BACKBONES[backbone](), METHODS["ipet"]()), seed=5).eval()
    second.save_pretrained(tmp_path / "second")
    model = PeftModel.from_pretrained(BACKBONES[backbone](), tmp_path / "first", adapter_name="first")
    model.load_adapter(tmp_path / "second", adapter_name="second")
    assert torch.equal(logits(model, backbone), logits(first, backbone))
    model.set_adapter("second")
    assert torch.equal(logits(model, backbone), logits(second, backbone))
    model.save_pretrained(tmp_path / "both", selected_adapters=["second"])
    stored = load_file(tmp_path / "both" / "second" / WEIGHTS)
    reference = load_file(tmp_path / "second" / WEIGHTS)
    assert stored.keys() == reference.keys()
    assert all(torch.equal(stored[key], reference[key]) for key in stored)


def test_pickle_files(tmp_path):
    model = randomize(get_peft_model(make_ast(), IPETConfig())).eval()
    model.save_pretrained(tmp_path, safe_serialization=False)
    again = PeftModel.from_pretrained(make_ast(), tmp_path)
    assert torch.equal(logits(again, "ast"), logits(model, "ast"))


def drop(part):
    def damage(tensors):
        return {key: value for key, value in tensors.items() if part not in key}

    return damage


def add(tensors):
    return {**tensors, "base_model.model.layers.7.prompt.embeddings": torch.zeros(3, 32)}


def reshape(tensors):
    key = next(key for key in tensors if key.endswith("down.weight"))
    return {**tensors, key: torch.zeros(4, 32)}


DAMAGE = {
    "a missing prompt": (drop("layers.1.prompt"), r"missing: .*1\.ipet_prompt"),
    "no adapter at all": (drop("layers."), "and 5 more"),
    "an extra layer": (add, r"not of this adapter: .*layers\.7"),
    "a wrong shape": (reshape, r"wrong shape: .*\(4, 32\), the model needs \(8, 32\)"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_checkpoint_with_other_tensors_is_refused(case, tmp_path):
    damage, message = DAMAGE[case]
    saved("ast", "ipet", tmp_path)
    save_file(damage(load_file(tmp_path / WEIGHTS)), tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(make_ast(), tmp_path)


def test_a_checkpoint_without_its_head_is_refused(tmp_path):
    base = make_ast()
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(type(base).from_pretrained(tmp_path / "base"), METHODS["ipet"]())
    model.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / WEIGHTS
    save_file(drop("classifier.dense")(load_file(path)), path)
    with pytest.raises(KeyError, match="classifier.dense"):  # PEFT's own message
        PeftModel.from_pretrained(make_ast(), tmp_path / "adapter")
    with pytest.raises(ValueError, match="lacks .*classifier.dense"):
        AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(keep, tmp_path):
    base = make_ast()
    base.save_pretrained(tmp_path / "base")
    get_peft_model(type(base).from_pretrained(tmp_path / "base"), METHODS["ipet"]()).save_pretrained(tmp_path)
    content = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(content[:keep])
    with pytest.raises(ValueError, match="cannot be read"):
        AutoPeftModelForAudioClassification.from_pretrained(tmp_path)
    with pytest.raises(Exception, match="header|incomplete|buffer"):
        PeftModel.from_pretrained(make_ast(), tmp_path)


def test_a_configuration_with_an_unknown_value_is_refused(tmp_path):
    saved("ast", "ipet", tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "bottleneck_dim": -1}))
    with pytest.raises(ValueError, match="bottleneck_dim"):
        PeftModel.from_pretrained(make_ast(), tmp_path)


def test_an_image_model_of_uneven_size_comes_back(tmp_path):
    base = BACKBONES["vit"](image_size=(24, 32))
    model = randomize(get_peft_model(base, METHODS["time_freq_conv"]())).eval()
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(BACKBONES["vit"](image_size=(24, 32)), tmp_path)
    image = torch.randn(2, 3, 24, 32)
    assert torch.equal(again(pixel_values=image).logits, model(pixel_values=image).logits)
    with pytest.raises(ValueError, match=r"image_size=\[24, 32\].*image_size=24"):
        PeftModel.from_pretrained(BACKBONES["vit"](), tmp_path)

"""Saving and loading with PEFT: adapters' names, files, configurations, copies of models."""

import copy
import dataclasses
import io
import json
import pickle

import pytest
import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from saved import close, each_backbone, logits, own_parameters, some_methods, trained, two_methods
from tiny import BACKBONES, METHODS, count_hooks, each_method, randomize

from peft_audio import IPETConfig


# ---- adapter names -----------------------------------------------------------------------------------------------

NAMES = ("adap", "adapter", "adapter_2")


@pytest.mark.filterwarnings("ignore:Adapter name .* should not be contained")
@each_backbone
@some_methods
def test_names_that_contain_one_another_stay_apart(backbone, method, tmp_path):
    model, outputs = trained(backbone, method, *NAMES)
    assert len({tuple(output.flatten().tolist()) for output in outputs.values()}) == len(NAMES)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*NAMES, "README.md"}
    stored = {name: load_file(tmp_path / name / "adapter_model.safetensors") for name in NAMES}
    for name in NAMES:
        assert not [key for key in stored[name] if name in key.split(".")]
        mine = sorted(value.sum().item() for value in own_parameters(model, name).values())
        assert sorted(value.sum().item() for value in stored[name].values()) == pytest.approx(mine)
    again = PeftModel.from_pretrained(BACKBONES[backbone](), tmp_path / "adapter", adapter_name="adap")
    for name in ("adapter", "adapter_2"):
        again.load_adapter(tmp_path / name, adapter_name=name)
        again.set_adapter(name)
        assert close(logits(again, backbone), outputs[name])
    again.set_adapter("adap")
    assert close(logits(again, backbone), outputs["adapter"])
    model.delete_adapter("adap")
    for name in NAMES[1:]:
        model.set_adapter(name)
        assert torch.equal(logits(model, backbone), outputs[name])


# ---- files -------------------------------------------------------------------------------------------------------


@each_backbone
@two_methods
def test_selected_adapters_are_saved_in_folders_of_their_names(backbone, method, tmp_path):
    model, outputs = trained(backbone, method, "default", "second", "third")
    model.save_pretrained(tmp_path, selected_adapters=["default", "third"])
    files = {"adapter_config.json", "adapter_model.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == files | {"README.md", "third"}
    assert {path.name for path in (tmp_path / "third").iterdir()} == files
    root = PeftModel.from_pretrained(BACKBONES[backbone](), tmp_path)
    assert close(logits(root, backbone), outputs["default"])
    inside = PeftModel.from_pretrained(BACKBONES[backbone](), tmp_path, subfolder="third", adapter_name="other")
    assert close(logits(inside, backbone), outputs["third"])


@each_method
def test_both_kinds_of_file_hold_the_same(method, tmp_path):
    model, outputs = trained("wav2vec2", method)
    model.save_pretrained(tmp_path / "safetensors")
    model.save_pretrained(tmp_path / "pickle", safe_serialization=False)
    assert {path.name for path in (tmp_path / "pickle").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.bin",
    }
    stored = load_file(tmp_path / "safetensors" / "adapter_model.safetensors")
    pickled = torch.load(tmp_path / "pickle" / "adapter_model.bin", weights_only=True)
    assert stored.keys() == pickled.keys() and all(torch.equal(stored[key], pickled[key]) for key in stored)
    again = PeftModel.from_pretrained(BACKBONES["wav2vec2"](), tmp_path / "pickle")
    assert close(logits(again, "wav2vec2"), outputs["default"])


# ---- configurations ----------------------------------------------------------------------------------------------


@two_methods
def test_the_saved_configuration_is_that_of_the_model(method, tmp_path):
    model, _ = trained("wav2vec2", method)
    model.save_pretrained(tmp_path)
    config = model.peft_config["default"]
    assert config.inference_mode is False
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert stored.keys() == {field.name for field in dataclasses.fields(config)}
    assert stored["inference_mode"] is True and stored["peft_type"] == config.peft_type.value
    assert stored["modules_to_save"] == ["projector", "classifier"]
    assert stored["auto_mapping"] == {
        "base_model_class": "Wav2Vec2ForSequenceClassification",
        "parent_library": "transformers.models.wav2vec2.modeling_wav2vec2",
    }
    for cls in (PeftConfig, type(config)):
        loaded = cls.from_pretrained(tmp_path)
        assert type(loaded) is type(config)
        assert dataclasses.replace(loaded, inference_mode=False, auto_mapping=None) == config


def test_fields_of_a_later_version_are_ignored_with_a_warning(tmp_path):
    IPETConfig(num_virtual_tokens=3).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "of_the_future": 1}))
    with pytest.warns(UserWarning, match="of_the_future.*IPETConfig"):
        assert PeftConfig.from_pretrained(tmp_path) == IPETConfig(num_virtual_tokens=3)
    with pytest.raises(TypeError, match="of_the_future"):
        IPETConfig(of_the_future=1)


@each_method
def test_configurations_from_keywords_and_dictionaries(method):
    config = METHODS[method]()
    fields = json.loads(json.dumps(config.to_dict()))
    assert type(config)(**fields) == config == PeftConfig.from_peft_type(**fields)
    assert config.is_prompt_learning is False and config.is_adaption_prompt is False


def test_a_missing_configuration_and_a_wrong_task_are_refused(tmp_path):
    with pytest.raises(ValueError, match="adapter_config.json"):
        PeftConfig.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Invalid task type: 'AUDIO'"):
        IPETConfig(task_type="AUDIO")


# ---- copies ------------------------------------------------------------------------------------------------------


@some_methods
def test_pickled_models_stand_on_their_own(method):
    # Weight norms keep PyTorch from pickling any wav2vec2.
    model, outputs = trained("ast", method, "first", "second")
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert torch.equal(logits(twin, "ast"), outputs["first"])
        randomize(twin, seed=9)
        assert not torch.equal(logits(twin, "ast"), outputs["first"])
        assert torch.equal(logits(model, "ast"), outputs["first"])
        twin.set_adapter("second")
        assert torch.equal(logits(twin, "ast"), outputs["second"])
        base = twin.unload()
        assert count_hooks(base) == 0 and torch.equal(logits(model, "ast"), outputs["first"])


@each_backbone
@two_methods
def test_deep_copies_keep_both_adapters(backbone, method):
    model, outputs = trained(backbone, method, "first", "second")
    twin = copy.deepcopy(model)
    model.delete_adapter("first")
    model.base_model.disable_adapter_layers()
    for name in ("second", "first"):
        twin.set_adapter(name)
        assert torch.equal(logits(twin, backbone), outputs[name])

"""Saving and loading as PEFT and transformers do it: names, files, state dicts, the meta device, plain models."""

import copy
import dataclasses
import io
import json
import pickle

import pytest
import torch
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.functional import delete_adapter
from safetensors.torch import load_file
from tiny import BACKBONES, METHODS, count_hooks, each_method, make_inputs, randomize, trainable
from transformers import AutoModelForAudioClassification

from peft_audio import IPETConfig


PREFIX = "base_model.model."
each_backbone = pytest.mark.parametrize("backbone", ["ast", "wav2vec2"])
some_methods = pytest.mark.parametrize(
    "method", ["embedding_prompt", "parallel_mlp", "ipet", "time_freq_conv", "bottleneck_parallel", "input_prompt"]
)
three_methods = pytest.mark.parametrize("method", ["ipet", "bottleneck_parallel", "input_prompt"])
two_methods = pytest.mark.parametrize("method", ["ipet", "input_prompt"])


def trained(backbone, method, *names, **options):
    """A model with adapters of these names, each with weights of its own, and the logits of each; the first active."""
    names = names or ("default",)
    model = get_peft_model(BACKBONES[backbone](), METHODS[method](**options), adapter_name=names[0])
    outputs = {}
    for seed, name in enumerate(names):
        if name not in model.peft_config:
            model.add_adapter(name, METHODS[method](**options))
        model.set_adapter(name)
        outputs[name] = logits(randomize(model, seed=seed + 2).eval(), backbone)
    model.set_adapter(names[0])
    return model, outputs


def logits(model, backbone):
    with torch.no_grad():
        return model(**make_inputs(backbone)).logits


def close(first, second):
    return torch.allclose(first, second, atol=1e-5, rtol=1e-5)


def own_parameters(model, name):
    return {key: parameter for key, parameter in model.named_parameters() if name in key.split(".")}


def without_prefix(state_dict):
    return {key.removeprefix(PREFIX): value for key, value in state_dict.items()}


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


# ---- state dicts and the meta device -----------------------------------------------------------------------------


@each_backbone
@some_methods
def test_a_state_dict_goes_into_an_adapter_of_another_name(backbone, method):
    source, outputs = trained(backbone, method)
    state_dict = get_peft_model_state_dict(source)
    model, others = trained(backbone, method, "first", "second")
    stays = {key: value.clone() for key, value in model.state_dict().items() if ".second." not in key}
    result = set_peft_model_state_dict(model, state_dict, adapter_name="second")
    assert result.unexpected_keys == [] and not [key for key in result.missing_keys if ".second." in key]
    assert all(torch.equal(model.state_dict()[key], value) for key, value in stays.items())
    model.set_adapter("second")
    assert close(logits(model, backbone), outputs["default"])
    returned = get_peft_model_state_dict(model, adapter_name="second")
    assert returned.keys() == state_dict.keys()
    assert all(torch.equal(returned[key], value) for key, value in state_dict.items())


@each_backbone
@three_methods
def test_a_state_dict_goes_into_a_plain_model(backbone, method):
    source, outputs = trained(backbone, method)
    model = inject_adapter_in_model(METHODS[method](), BACKBONES[backbone]()).eval()
    set_peft_model_state_dict(model, without_prefix(get_peft_model_state_dict(source)))
    assert close(logits(model, backbone), outputs["default"])
    twin = inject_adapter_in_model(METHODS[method](), BACKBONES[backbone]()).eval()
    set_peft_model_state_dict(twin, get_peft_model_state_dict(model))
    assert torch.equal(logits(twin, backbone), logits(model, backbone))
    source, outputs = trained(backbone, method, modules_to_save=[])
    model = inject_adapter_in_model(METHODS[method](modules_to_save=[]), BACKBONES[backbone]()).eval()
    set_peft_model_state_dict(model, get_peft_model_state_dict(source))
    assert close(logits(model, backbone), outputs["default"])


@pytest.mark.xfail(strict=True, raises=KeyError, reason="PEFT looks for heads without the prefix of a PeftModel")
@each_backbone
def test_a_state_dict_with_heads_and_prefix_goes_into_a_plain_model(backbone):
    source, outputs = trained(backbone, "ipet")
    model = inject_adapter_in_model(METHODS["ipet"](), BACKBONES[backbone]()).eval()
    set_peft_model_state_dict(model, get_peft_model_state_dict(source))
    assert close(logits(model, backbone), outputs["default"])


def on_meta(model):
    return {name for name, parameter in model.named_parameters() if parameter.is_meta}


def in_layers(model, name):
    """Names of the adapter's parameters that are not in a head."""
    return {key for key in own_parameters(model, name) if ".modules_to_save." not in key}


@each_backbone
@three_methods
def test_adapters_wait_on_the_meta_device_for_their_values(backbone, method, tmp_path):
    source, outputs = trained(backbone, method, "first", "second")
    source.save_pretrained(tmp_path)
    config = METHODS[method]()
    model = PeftModel(BACKBONES[backbone](), config, "first", low_cpu_mem_usage=True).eval()
    assert on_meta(model) == in_layers(model, "first") != set()
    model.load_adapter(tmp_path / "first", "first", low_cpu_mem_usage=True)
    assert not on_meta(model) and close(logits(model, backbone), outputs["first"])
    model.add_adapter("second", config, low_cpu_mem_usage=True)
    assert on_meta(model) == in_layers(model, "second") and close(logits(model, backbone), outputs["first"])
    model.load_adapter(tmp_path / "second", "second", low_cpu_mem_usage=True)
    model.load_adapter(tmp_path / "first", "third", low_cpu_mem_usage=True)
    assert not on_meta(model)
    for name, expected in (("second", "second"), ("third", "first")):
        model.set_adapter(name)
        assert close(logits(model, backbone), outputs[expected])


@each_backbone
@three_methods
def test_a_plain_models_adapter_waits_on_the_meta_device(backbone, method):
    source, outputs = trained(backbone, method)
    state_dict = without_prefix(get_peft_model_state_dict(source))
    model = inject_adapter_in_model(METHODS[method](), BACKBONES[backbone](), low_cpu_mem_usage=True).eval()
    assert on_meta(model) == in_layers(model, "default") != set()
    set_peft_model_state_dict(model, state_dict, low_cpu_mem_usage=True)
    assert not on_meta(model) and close(logits(model, backbone), outputs["default"])


# ---- transformers' own methods, on a model that is no PeftModel --------------------------------------------------


def plain(source, backbone, method, **options):
    """The adapters of `source` on a model of transformers, put there with its own methods; the last is active."""
    model = BACKBONES[backbone]()
    for name in source.peft_config:
        model.add_adapter(METHODS[method](**options), name)
        state_dict = get_peft_model_state_dict(source, adapter_name=name)
        set_peft_model_state_dict(model, without_prefix(state_dict), adapter_name=name)
    return model.eval()


@each_backbone
@some_methods
def test_transformers_own_methods(backbone, method):
    base = logits(BACKBONES[backbone](), backbone)
    source, outputs = trained(backbone, method, "first", "second")
    model = plain(source, backbone, method)
    assert model.active_adapters() == ["second"]
    for name in ("second", "first"):
        model.set_adapter(name)
        assert model.active_adapters() == [name] and close(logits(model, backbone), outputs[name])
        expected = without_prefix(get_peft_model_state_dict(source, adapter_name=name))
        state_dict = model.get_adapter_state_dict()
        assert state_dict.keys() == expected.keys()
        assert all(torch.equal(state_dict[key], value) for key, value in expected.items())
    model.delete_adapter("first")
    assert model.active_adapters() == ["second"] and not own_parameters(model, "first")
    assert close(logits(model, backbone), outputs["second"])
    model.disable_adapters()
    assert torch.equal(logits(model, backbone), base)
    model.delete_adapter("second")
    assert not hasattr(model, "peft_config") and torch.equal(logits(model, backbone), base)


@each_backbone
def test_wrong_names_are_refused_by_transformers_own_methods(backbone):
    model = BACKBONES[backbone]()
    with pytest.raises(ValueError, match="No adapter loaded"):
        model.active_adapters()
    model.add_adapter(METHODS["ipet"](), "first")
    with pytest.raises(ValueError, match="first already exists"):
        model.add_adapter(METHODS["ipet"](), "first")
    for wrong in ("second", ["first", "second"]):
        with pytest.raises(ValueError, match="second"):
            model.set_adapter(wrong)
        with pytest.raises(ValueError, match="second"):
            model.delete_adapter(wrong)
    assert model.active_adapters() == ["first"]


@each_backbone
@pytest.mark.parametrize("method", ["parallel_mlp", "time_freq_conv", "input_prompt"])
def test_a_plain_model_with_two_active_adapters_and_no_heads(backbone, method):
    source, outputs = trained(backbone, method, "first", modules_to_save=[])
    model = plain(source, backbone, method, modules_to_save=[])
    model.add_adapter(METHODS[method](modules_to_save=[]), "second")  # which starts without effect
    model.set_adapter(["first", "second"])
    assert model.active_adapters() == ["first", "second"]
    assert close(logits(model.eval(), backbone), outputs["first"])
    randomize(model)
    assert not close(logits(model, backbone), outputs["first"])
    both = logits(model, backbone)
    model.disable_adapters()
    assert torch.equal(logits(model, backbone), logits(BACKBONES[backbone](), backbone))
    model.enable_adapters()
    assert torch.equal(logits(model, backbone), both)


@each_backbone
@two_methods
def test_enabling_a_plain_models_adapters_brings_the_heads_back(backbone, method):
    source, outputs = trained(backbone, method)
    model = plain(source, backbone, method)
    model.disable_adapters()
    model.enable_adapters()
    assert close(logits(model, backbone), outputs["default"])


@each_backbone
@two_methods
def test_only_the_active_adapter_of_a_plain_model_trains(backbone, method):
    model = BACKBONES[backbone]()
    for name in ("first", "second"):
        model.add_adapter(METHODS[method](), name)
        assert trainable(model).keys() == own_parameters(model, name).keys()


@each_backbone
@two_methods
def test_a_second_injected_adapter_is_active_with_its_head(backbone, method):
    source, outputs = trained(backbone, method, "first", "second")
    model = BACKBONES[backbone]()
    for name in ("first", "second"):
        inject_adapter_in_model(METHODS[method](), model, name)
        state_dict = get_peft_model_state_dict(source, adapter_name=name)
        set_peft_model_state_dict(model, without_prefix(state_dict), adapter_name=name)
    assert close(logits(model.eval(), backbone), outputs["second"])


@each_backbone
@two_methods
def test_a_second_injected_adapter_can_be_deleted(backbone, method):
    model = BACKBONES[backbone]()
    for name in ("first", "second"):
        inject_adapter_in_model(METHODS[method](init_weights=False), model, name)
    delete_adapter(model, "second", prefix=f"{METHODS[method]().method_name}_")
    assert not own_parameters(model, "second") and own_parameters(model, "first")


# Loading: wav2vec2 has a `load_adapter` of its own, for the languages of MMS.


def test_wav2vec2s_own_load_adapter_refuses(tmp_path):
    trained("wav2vec2", "ipet")[0].save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="adapter_attn_dim"):
        BACKBONES["wav2vec2"]().load_adapter(tmp_path)


@pytest.mark.parametrize("backbone", ["ast", "hubert"])
@three_methods
def test_transformers_loads_an_adapter(backbone, method, tmp_path):
    base = BACKBONES[backbone]()
    base.save_pretrained(tmp_path / "base")
    source = get_peft_model(type(base).from_pretrained(tmp_path / "base"), METHODS[method]())
    expected = logits(randomize(source).eval(), backbone)
    source.save_pretrained(tmp_path / "adapter")
    by_auto_class = AutoModelForAudioClassification.from_pretrained(tmp_path / "adapter")
    by_folder, by_state_dict = BACKBONES[backbone](), BACKBONES[backbone]()
    by_folder.load_adapter(tmp_path / "adapter")
    state_dict = get_peft_model_state_dict(source)
    by_state_dict.load_adapter(peft_config=METHODS[method](), adapter_state_dict=state_dict)
    for model in (by_auto_class, by_folder, by_state_dict):
        assert close(logits(model, backbone), expected)
        # transformers freezes what is in the layers, not the heads.
        assert model.active_adapters() == ["default"] and not trainable(model).keys() & in_layers(model, "default")


@two_methods
def test_transformers_loads_a_second_adapter_and_deletes_it(method, tmp_path):
    source, outputs = trained("ast", method, "first", "second")
    source.save_pretrained(tmp_path)
    model = BACKBONES["ast"]()
    for name in ("first", "second"):
        model.load_adapter(tmp_path / name, adapter_name=name)
        assert close(logits(model, "ast"), outputs[name])
    model.delete_adapter("second")
    assert model.active_adapters() == ["first"] and close(logits(model, "ast"), outputs["first"])


@two_methods
def test_a_second_adapter_that_does_not_fit_is_taken_off_again(method):
    source, outputs = trained("ast", method)
    model = plain(source, "ast", method)
    state_dict = get_peft_model_state_dict(source)
    state_dict.pop(next(key for key in state_dict if "classifier" not in key))
    with pytest.raises(ValueError, match="does not fit adapter 'second'"):
        model.load_adapter(peft_config=METHODS[method](), adapter_state_dict=state_dict, adapter_name="second")
    assert list(model.peft_config) == ["default"] and not own_parameters(model, "second")
    assert close(logits(model, "ast"), outputs["default"])


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

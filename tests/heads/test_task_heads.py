"""The heads of every task class: trained, saved and loaded without being asked for."""

import inspect
import warnings

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from tasks import CASES, XVECTOR, base_folder, each_task, inputs_of, load
from tiny import ARCHITECTURES, METHODS, make, randomize, trainable
from transformers.models.auto import modeling_auto

from peft_audio import head_modules


each_method = pytest.mark.parametrize("method", ["ipet", "time_freq_conv", "input_prompt"])
WITH_FRAME_ADAPTERS = [case for case in CASES if case[0] in ("wav2vec2", "wavlm", "data2vec-audio", "wav2vec2-bert")]
WITH_FRAME_ADAPTERS = [case for case in WITH_FRAME_ADAPTERS if case[1] == "ForCTC"]
ADDED = {"add_adapter": True, "num_adapter_layers": 1}


def new_names(model):
    """What transformers says it made anew, from its report of loading."""
    return {name for name, parameter in model.named_parameters() if not hasattr(parameter, "_is_hf_initialized")}


def outputs_of(model, inputs):
    with torch.no_grad():
        outputs = model.eval()(**inputs)
    return [outputs.logits, *([outputs.embeddings] if "embeddings" in outputs else [])]


def check_round_trip(model, again, inputs, folder):
    """Train a step, save, load on another random head: the same outputs and loss."""
    before = {name: value.clone() for name, value in model.get_base_model().state_dict().items()}
    model.train()
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-2)
    model(**inputs).loss.backward()
    assert all(parameter.grad is not None for name, parameter in trainable(model).items() if "objective" not in name)
    optimizer.step()
    expected, loss = outputs_of(model, inputs), model(**inputs).loss
    model.save_pretrained(folder)
    loaded = PeftModel.from_pretrained(again, folder)
    for actual, wanted in zip(outputs_of(loaded, inputs), expected, strict=True):
        torch.testing.assert_close(actual, wanted)
    torch.testing.assert_close(loaded(**inputs).loss, loss)
    after = model.get_base_model().state_dict()
    frozen = [name for name in before if "original_module" in name or "base_layer" in name]
    assert frozen and all(torch.equal(after[name], before[name]) for name in frozen)


@each_task
@each_method
@pytest.mark.filterwarnings("error:The checkpoint of the base model lacks")
def test_the_head_of_a_task_is_trained_and_saved(backbone, task, method, tmp_path):
    model = load(backbone, task)
    new = new_names(model)
    model = randomize(get_peft_model(model, METHODS[method]()), std=0.02)
    trained = {name.replace(".modules_to_save.default", "") for name in trainable(model)}
    assert {f"base_model.model.{name}" for name in new} <= trained
    own = model.base_model.prefix
    frozen = (".feature_extractor.conv", ".feature_projection.")
    assert not any(part in name for name in trained if own not in name for part in frozen)
    check_round_trip(model, load(backbone, task, seed=7), inputs_of(backbone, task), tmp_path)


@each_method
@pytest.mark.parametrize("backbone, task", WITH_FRAME_ADAPTERS)
@pytest.mark.filterwarnings("error:The checkpoint of the base model lacks")
def test_new_convolutions_behind_the_encoder_are_trained_and_saved(backbone, task, method, tmp_path):
    model = load(backbone, task, **ADDED)
    new = new_names(model)
    assert any(".adapter." in name for name in new)
    model = randomize(get_peft_model(model, METHODS[method]()), std=0.02)
    trained = {name.replace(".modules_to_save.default", "") for name in trainable(model)}
    assert {f"base_model.model.{name}" for name in new} <= trained
    check_round_trip(model, load(backbone, task, seed=7, **ADDED), inputs_of(backbone, task), tmp_path)


def test_convolutions_that_the_checkpoint_has_stay_frozen(tmp_path):
    load("wav2vec2", "ForCTC", **ADDED).save_pretrained(tmp_path)
    loaded = type(load("wav2vec2", "ForCTC")).from_pretrained(tmp_path)
    model = get_peft_model(loaded, METHODS["ipet"]())
    assert model.peft_config["default"].modules_to_save == ["lm_head"]


@each_task
def test_a_second_adapter_has_a_head_of_its_own(backbone, task):
    inputs = inputs_of(backbone, task)
    model = randomize(get_peft_model(load(backbone, task), METHODS["ipet"](), "first"), std=0.02)
    model.add_adapter("second", METHODS["ipet"]())
    assert not any(".original_module.original_module" in name for name, _ in model.named_modules()), "wrapped twice"
    expected = {}
    for seed, name in enumerate(("first", "second")):
        model.set_adapter(name)
        expected[name] = outputs_of(randomize(model, seed=seed, std=0.02), inputs)
    for name in ("first", "second"):
        model.set_adapter(name)
        assert all(map(torch.equal, outputs_of(model, inputs), expected[name]))
    del inputs["labels"]
    mixed = outputs_of_mixed(model, inputs, ["first", "second"])
    for row, name in enumerate(("first", "second")):
        for actual, wanted in zip(mixed, expected[name], strict=True):
            torch.testing.assert_close(actual[row], wanted[row], atol=2e-5, rtol=1e-4)
    with model.disable_adapter():
        for actual, wanted in zip(outputs_of(model, inputs), outputs_of(load(backbone, task), inputs), strict=True):
            torch.testing.assert_close(actual, wanted)
    unloaded = model.unload()
    assert not any("modules_to_save" in name or "original_module" in name for name in unloaded.state_dict())


def outputs_of_mixed(model, inputs, names):
    with torch.no_grad():
        outputs = model.eval()(**inputs, adapter_names=names)
    return [outputs.logits, *([outputs.embeddings] if "embeddings" in outputs else [])]


def test_a_name_that_is_a_path_means_that_module_alone():
    model = get_peft_model(load("wav2vec2", "ForXVector"), METHODS["ipet"](modules_to_save=["feature_extractor"]))
    names = {name for name in trainable(model) if "ipet" not in name}
    assert names == {
        f"base_model.model.feature_extractor.modules_to_save.default.{name}" for name in ("weight", "bias")
    }


def test_an_adapters_name_is_no_module_of_the_head():
    model = get_peft_model(make("wav2vec2"), METHODS["ipet"](), "adapter")
    model.add_adapter("tdnn", METHODS["ipet"]())
    assert all("head" not in config.base_settings for config in model.peft_config.values())


def test_a_bare_encoder_has_no_head():
    assert head_modules(make("wav2vec2", bare=True)) == []


def test_what_is_in_no_checkpoint_and_not_saved_is_named():
    message = r"lacks weights of lm_head, which the adapter neither trains nor saves.*`modules_to_save`"
    with pytest.warns(UserWarning, match=message):
        get_peft_model(load("wav2vec2", "ForCTC"), METHODS["ipet"](modules_to_save=[]))


def classes_of(backbone):
    """Every class that an auto class of transformers makes of this model type."""
    model_type = getattr(transformers, ARCHITECTURES[backbone][0]).model_type
    tables = [table for name, table in inspect.getmembers(modeling_auto) if name.endswith("_MAPPING_NAMES")]
    names = [
        table[model_type]
        for table in tables
        if table is not modeling_auto.CONFIG_MAPPING_NAMES and model_type in table
    ]
    flat = {name for entry in names for name in (entry if isinstance(entry, tuple) else (entry,))}
    return sorted(
        name
        for name in flat
        if hasattr(transformers, name) and issubclass(getattr(transformers, name), torch.nn.Module)
    )


BACKBONES = [name for name in ARCHITECTURES if not name.endswith(("-stable", "-rotary"))]
ALL_CLASSES = [(backbone, name) for backbone in BACKBONES for name in classes_of(backbone)]


@pytest.mark.parametrize("backbone, name", ALL_CLASSES)
def test_nothing_new_is_left_out_in_silence(backbone, name):
    """Whatever the class: what the checkpoint lacks trains and is saved, or a message names it."""
    options = XVECTOR if name.endswith("ForXVector") else {}
    model = getattr(transformers, name).from_pretrained(base_folder(backbone), **options)
    new = new_names(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = get_peft_model(model, METHODS["ipet"]())
        except ValueError as error:
            assert "was looked for at" in str(error)  # a decoder alone
            return
    told = " ".join(
        str(warning.message) for warning in caught if "checkpoint of the base model" in str(warning.message)
    )
    trained = {
        key.removeprefix("base_model.model.").replace(".modules_to_save.default", "") for key in trainable(model)
    }
    for key in new - trained:
        place = key.rpartition(".")[0] or key
        assert place in told.replace(",", " ").split(), f"{key} is new, but neither trained nor told"
    assert bool(told) == bool(new - trained)

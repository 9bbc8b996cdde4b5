"""What the package relies on inside PEFT: its tables, the modules that it puts into a model, the names of tensors."""

import enum
import inspect

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType
from peft.utils.other import AuxiliaryTrainingWrapper
from refusals import two_adapters
from tiny import METHODS, make
from torch import nn

from peft_audio.tuner.model import EncoderTuner
from peft_audio.tuner.tuner_layer import HookedTunerLayer
from peft_audio.upstream import peft_modules, peft_state_dict, registration


LOADING = "`load_adapter` of plain transformers models no longer finds the tensors of an adapter"
CHECKING = "adapters' checkpoints are no longer checked before they are loaded"
HEADS = "heads in `modules_to_save` are not found"


@pytest.fixture(scope="module")
def model():
    """A classifier with adapters "first", of the base model's head and layers, and "second", of layers only."""
    model = get_peft_model(make("ast"), METHODS["parallel_mlp"](), adapter_name="first")
    model.add_adapter("second", METHODS["parallel_mlp"](modules_to_save=[]))
    return model


# ---- tables ----------------------------------------------------------------------------------------------------------


def test_the_enumeration_of_types_is_one_of_strings():
    """Else no tuner type of this package can be registered: importing the package fails."""
    assert issubclass(PeftType, str) and issubclass(PeftType, enum.Enum)
    for name in ("_member_names_", "_member_map_", "_value2member_map_"):
        assert hasattr(PeftType, name), f"tuner types cannot be added to PeftType, which has no {name}"
    declared, added = PeftType.LORA, PeftType.IPET
    for name in ("_name_", "_value_", "__objclass__", "_sort_order_"):
        assert hasattr(declared, name) and hasattr(added, name), f"members of PeftType have no {name}"
    assert type(added) is type(declared) and added.value == added.name == "IPET"


@pytest.mark.parametrize(
    "mapping", [PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING]
)
def test_the_mappings_have_types_as_keys(mapping):
    assert PeftType.LORA in mapping, "reloading a method's module fails: PEFT keeps its types elsewhere"


def test_registering_a_method_fills_the_mappings():
    config = METHODS["ipet"]()
    assert registration.tuner_class(config).prefix == "ipet_", "get_peft_model does not find this package's tuners"


def test_a_model_without_targets_is_accepted_with_the_special_value():
    """Else `layers_to_transform=[]` (linear probe) is refused."""
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="target"):
        get_peft_model(model, LoraConfig(target_modules=["nowhere"]))
    config = LoraConfig(target_modules=registration.NO_TARGET_MODULES)
    assert isinstance(get_peft_model(model, config), PeftModel)


# ---- modules ---------------------------------------------------------------------------------------------------------


def test_tuner_layers_of_peft_are_recognized():
    """Else `resize_ast`, `ast_from_vit` and the poolings accept models that already have adapters."""
    plain = nn.Sequential(nn.Linear(2, 2))
    assert not peft_modules.has_adapters(plain) and not peft_modules.has_adapters("model")
    assert peft_modules.has_adapters(get_peft_model(plain, LoraConfig(target_modules=["0"])))


def test_a_tuner_layer_says_which_of_its_adapters_are_active():
    """Else `cache_frozen` takes adapted layers for frozen ones."""
    model = get_peft_model(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), LoraConfig(target_modules=["0"]), "first")
    model.add_adapter("second", LoraConfig(target_modules=["1"]))
    layers = model.get_base_model()
    assert peft_modules.adapter_names(layers[0]) == {"first"} and peft_modules.adapter_names(layers[1]) == {"second"}
    assert [peft_modules.is_adapted(layer) for layer in layers] == [True, False]
    model.set_adapter("second")
    assert [peft_modules.is_adapted(layer) for layer in layers] == [False, True]
    with model.disable_adapter():
        assert not any(peft_modules.is_adapted(layer) for layer in layers)
    assert not peft_modules.is_adapted(nn.Linear(2, 2))


def test_heads_are_wrapped_with_their_adapters_names(model):
    ((name, head),) = peft_modules.trained_modules(model)
    assert name == "base_model.model.classifier", HEADS
    assert peft_modules.is_adapted(head), HEADS
    assert peft_modules.adapters_of(head) == {"first"}, f"{HEADS}: the wrapper has no names of adapters"


def test_heads_map_stored_names_to_own_names(model):
    ((_, head),) = peft_modules.trained_modules(model)
    own = dict(head.named_parameters())
    names = peft_modules.tensor_names(head, "first")
    assert names and names.keys() == make("ast").classifier.state_dict().keys(), LOADING
    assert set(names.values()) <= own.keys(), LOADING
    assert peft_modules.tensor_names(head, "second") == {}, f"{LOADING}: an adapter without head gets one"


def test_heads_of_one_adapter_are_frozen():
    """Else an adapter that `load_adapter` loads for inference has a trainable head."""
    model = get_peft_model(make("ast"), METHODS["parallel_mlp"]())
    ((_, head),) = peft_modules.trained_modules(model)
    assert any(parameter.requires_grad for parameter in head.parameters())
    peft_modules.freeze_trained_modules(model, "default")
    assert not any(parameter.requires_grad for parameter in head.parameters())


# ---- tensors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["first", "second"])
def test_the_tensors_of_one_adapter_are_found(model, name):
    found = peft_state_dict.adapter_tensors(model, name)
    expected = {key for key, _ in model.named_parameters() if name in key.split(".")}
    assert found.keys() == expected, f"{CHECKING}: PEFT selects other tensors of an adapter"


def test_names_start_with_the_prefix(model):
    stored = get_peft_model_state_dict(model, adapter_name="first")
    assert all(key.startswith(peft_state_dict.PEFT_MODEL_PREFIX) for key in stored), f"{LOADING}: another prefix"
    assert model.get_base_model().state_dict().keys() == peft_state_dict.without_prefix(model.state_dict()).keys()


def test_stored_tensors_are_named_as_in_the_model(model):
    stored = get_peft_model_state_dict(model, adapter_name="first")
    config, plain = model.peft_config["first"], model.get_base_model()
    named = peft_state_dict.named_as_in_model(plain, config, "first", stored)
    expected = {key: tensor for key, tensor in plain.named_parameters() if "first" in key.split(".")}
    assert named.keys() == expected.keys(), f"{LOADING}: `_remap_adapter_state_dict_for_load` gives other names"
    assert all(torch.equal(named[key], expected[key]) for key in expected)


def test_weights_are_read_by_a_public_function():
    """Else `AutoPeftModelForAudioClassification` and `write_card` cannot read an adapter's file."""
    assert "load_peft_weights" in peft.__all__


# What the tuner overrides, and what breaks when PEFT calls it in another way.
OVERRIDES = {
    "inject_adapter": "putting adapters on a model",
    "delete_adapter": "deleting adapters",
    "disable_adapter_layers": "disabling adapters",
    "enable_adapter_layers": "enabling adapters",
    "unload": "taking adapters off",
    "train": "batch norms of a frozen model",
    "_prepare_adapter_config": "checks of the configuration, the head that is trained",
    "_prepare_model": "weighted layer sums",
    "_check_target_module_exists": "which layers are adapted",
    "_create_and_replace": "putting adapters on layers",
    "_check_merge_allowed": "the refusal to merge",
    "_replace_module": "taking adapters off: hooks stay on the base model",
    "_get_adapter_state_dict": "the base-model settings that are saved",
    "_cast_adapter_dtype": "heads that train in float32",
    "set_adapter": "the labels of the active adapter",
    "_remove_adapter_name_from_key": "the names of tensors in checkpoints",
    "_remap_adapter_state_dict_for_load": "the check of checkpoints before they are loaded",
}
LAYER_OVERRIDES = {
    "set_adapter": "the labels of the active adapter",
    "_get_base_layer_device_and_dtype": "the device and dtype of adapters",
}
CASES = [(BaseTuner, EncoderTuner, *case) for case in OVERRIDES.items()]
CASES += [(BaseTunerLayer, HookedTunerLayer, *case) for case in LAYER_OVERRIDES.items()]


@pytest.mark.parametrize("upstream, ours, name, feature", CASES)
def test_what_the_tuner_overrides_is_called_as_before(upstream, ours, name, feature):
    assert hasattr(upstream, name), f"{feature}: {upstream.__name__}.{name} is gone"
    theirs, own = (
        [parameter for parameter in inspect.signature(getattr(cls, name)).parameters if parameter != "self"]
        for cls in (upstream, ours)
    )
    assert theirs == own, f"{feature}: {upstream.__name__}.{name} has other arguments"


def test_every_override_of_the_tuner_is_listed():
    for upstream, ours, listed in (
        (BaseTuner, EncoderTuner, OVERRIDES),
        (BaseTunerLayer, HookedTunerLayer, LAYER_OVERRIDES),
    ):
        functions = {name for name, value in vars(ours).items() if callable(getattr(value, "__func__", value))}
        overridden = {name for name in functions if hasattr(upstream, name) and not name.startswith("__")}
        assert overridden - {"unmerge"} == set(listed) | ({"_enable_peft_forward_hooks"} & overridden)


def test_mixed_batches_reach_the_tuner():
    """PEFT calls `_enable_peft_forward_hooks` of a tuner, where it has one, around each forward pass."""
    assert "_enable_peft_forward_hooks" in inspect.getsource(PeftModel), "`adapter_names` reaches no tuner"


@pytest.mark.parametrize("adapter_name", ["b", None])
def test_another_adapter_is_active_for_a_moment(adapter_name):
    model = two_adapters()
    asked = [parameter.requires_grad for parameter in model.parameters()]
    modules = [m for m in model.modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
    with peft_modules.only_adapter(model, adapter_name):
        assert all(list(m.active_adapters) == ([] if adapter_name is None else ["b"]) for m in modules), (
            "mixed batches"
        )
        assert [parameter.requires_grad for parameter in model.parameters()] == asked
    assert all(list(module.active_adapters) == ["a"] for module in modules)

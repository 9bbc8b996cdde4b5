"""Small helpers of PEFT that users of LoRA have: on layers of this package they do what they do there."""

import dataclasses

import pytest
import torch
from adapted import adapted, each_backbone, each_method, logits, two_methods
from peft import get_peft_model, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.helpers import disable_input_dtype_casting
from peft.tuners.tuners_utils import inspect_matched_modules
from saved import without_prefix
from tiny import BACKBONES, HIDDEN_SIZE, METHODS, make_inputs, randomize

from peft_audio.modules import AdapterModule
from peft_audio.tuner.encoder_layer import EncoderTunerLayer


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, EncoderTunerLayer)]


@each_backbone
def test_one_layer_is_disabled_alone(backbone):
    model = randomize(adapted(backbone, METHODS["ipet"]()))
    head = model.get_base_model().classifier
    with_all = logits(model, backbone)
    first, *others = layers_of(model)
    first.enable_adapters(False)
    assert not any(layer.disable_adapters for layer in others) and not head.disable_adapters
    without_first = logits(model, backbone)
    only_others = adapted(backbone, METHODS["ipet"](layers_to_transform=[1, 2]))
    tensors = get_peft_model_state_dict(model)
    set_peft_model_state_dict(only_others, {name: tensors[name] for name in tensors if ".layers.0." not in name})
    torch.testing.assert_close(without_first, logits(only_others, backbone))
    assert not torch.equal(without_first, with_all)
    first.enable_adapters(True)
    assert torch.equal(logits(model, backbone), with_all)


@each_backbone
@each_method
def test_a_state_dict_says_which_layers_are_adapted(backbone, method):
    if method == "input_prompt":
        pytest.skip("an input prompt is on no encoder layer")
    source = randomize(adapted(backbone, METHODS[method](layers_to_transform=[0, 2])))
    state_dict = without_prefix(get_peft_model_state_dict(source))
    # A whole model's state dict has the layers without an adapter too.
    for names in (source.state_dict(), source.get_base_model().state_dict()):
        config = METHODS[method]()
        with pytest.warns(RuntimeWarning, match=r"tensors of the layers \[0, 2\]"):
            inject_adapter_in_model(config, BACKBONES[backbone](), state_dict=names)
        assert config.layers_to_transform == [0, 2]
    model, config = BACKBONES[backbone](), METHODS[method]()
    with pytest.warns(
        RuntimeWarning, match=r"tensors of the layers \[0, 2\], but `layers_to_transform` asks for \[0, 1, 2\]"
    ):
        inject_adapter_in_model(config, model, state_dict=state_dict)
    assert config.layers_to_transform == [0, 2]
    set_peft_model_state_dict(model, state_dict)
    torch.testing.assert_close(logits(model.eval(), backbone), logits(source, backbone))


@two_methods
def test_a_state_dict_that_fits_the_configuration_is_taken_in_silence(method, recwarn):
    config = METHODS[method]()
    source = adapted("ast", dataclasses.replace(config))
    inject_adapter_in_model(config, BACKBONES["ast"](), state_dict=get_peft_model_state_dict(source))
    names = source.get_base_model().state_dict()
    inject_adapter_in_model(METHODS[method](), BACKBONES["ast"](), state_dict=names)
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]


@pytest.mark.filterwarnings("ignore:The state dict has tensors:RuntimeWarning")
@pytest.mark.parametrize(
    "name, message", [("classifier.weight", "none of its names"), ("layers.7.prompt.x", "between -3 and 2")]
)
def test_a_state_dict_of_something_else_is_refused(name, message):
    model, config = BACKBONES["ast"](), METHODS["ipet"]()
    before = [path for path, _ in model.named_modules()]
    with pytest.raises(ValueError, match=message):
        inject_adapter_in_model(config, model, state_dict={name: torch.zeros(1)})
    assert [path for path, _ in model.named_modules()] == before and config.layers_to_transform is None


@each_backbone
@each_method
def test_matched_modules_can_be_inspected(backbone, method):
    model = adapted(backbone, METHODS[method]())
    matched = inspect_matched_modules(model.base_model)["matched"]
    expected = {name for name, module in model.base_model.model.named_modules() if hasattr(module, "base_layer")}
    assert set(matched) == expected and matched


def test_the_width_of_an_encoder_layer_is_told_as_for_a_linear_layer():
    layers = layers_of(adapted("wav2vec2", METHODS["ipet"]()))
    assert all(layer.in_features == layer.out_features == HIDDEN_SIZE for layer in layers)


@each_backbone
@pytest.mark.parametrize("method", ["ipet", "time_freq_conv", "bottleneck_sequential", "input_prompt"])
def test_input_dtype_casting_can_be_disabled(backbone, method):
    """Then input in another dtype reaches the adapter's weights as it is, as with layerwise casting."""
    model = get_peft_model(BACKBONES[backbone]().to(torch.bfloat16), METHODS[method](), autocast_adapter_dtype=False)
    for module in model.modules():
        if isinstance(module, AdapterModule):
            module.float()
    inputs = {name: value.to(torch.bfloat16) for name, value in make_inputs(backbone).items()}
    with torch.no_grad():
        expected = model(**inputs).logits
        with disable_input_dtype_casting(model, active=False):
            assert torch.equal(model(**inputs).logits, expected)
        with disable_input_dtype_casting(model):
            if method != "input_prompt":
                with pytest.raises(RuntimeError, match="dtype"):
                    model(**inputs)
        assert torch.equal(model(**inputs).logits, expected)

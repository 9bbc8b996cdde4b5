"""Names of tensors in models that torch has put wrappers around."""

import pytest
import torch
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from tiny import METHODS, each_method, make, make_inputs, randomize
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp._common_utils import FSDP_WRAPPED_MODULE

from peft_audio.upstream.peft_state_dict import adapter_tensors, without_wrappers


class Sharded(nn.Module):
    """Names as FSDP 1 gives them, which needs an accelerator: in `named_modules`, and not in `state_dict`."""

    def __init__(self, module):
        super().__init__()
        self._fsdp_wrapped_module = module
        self.register_state_dict_post_hook(self._without_name)
        self.register_load_state_dict_pre_hook(self._with_name)

    @staticmethod
    def _without_name(module, tensors, prefix, *_):
        for name in [name for name in tensors if name.startswith(f"{prefix}_fsdp_wrapped_module.")]:
            tensors[prefix + name.removeprefix(f"{prefix}_fsdp_wrapped_module.")] = tensors.pop(name)

    @staticmethod
    def _with_name(module, tensors, prefix, *_):
        for name in [name for name in tensors if name.startswith(prefix)]:
            tensors[f"{prefix}_fsdp_wrapped_module.{name.removeprefix(prefix)}"] = tensors.pop(name)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._fsdp_wrapped_module, name)

    def forward(self, *args, **kwargs):
        return self._fsdp_wrapped_module(*args, **kwargs)


def around_layers(wrapper):
    def wrap(model):
        layers = model.get_base_model().wav2vec2.encoder.layers
        for index, layer in enumerate(layers):
            layers[index] = wrapper(layer)
        return model

    return wrap


WRAPPERS = {
    "FSDP around layers": around_layers(Sharded),
    "checkpointing around layers": around_layers(checkpoint_wrapper),
}


@each_method
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_an_adapter_with_its_head_is_loaded_through_wrappers(wrapper, method):
    model = randomize(get_peft_model(make("wav2vec2"), METHODS[method]())).eval()
    saved = {name: value.clone() for name, value in get_peft_model_state_dict(model).items()}
    inputs = make_inputs("wav2vec2")
    expected = model(**inputs).logits
    wrapped = WRAPPERS[wrapper](get_peft_model(make("wav2vec2"), METHODS[method]()).eval())
    set_peft_model_state_dict(wrapped, saved, adapter_name="default")
    torch.testing.assert_close(wrapped(**inputs).logits, expected)
    assert set(get_peft_model_state_dict(wrapped)) == set(saved)


@each_method
def test_names_are_those_without_wrappers(method):
    """Also where FSDP is around the whole model, as the Trainer wraps it."""
    model = get_peft_model(make("wav2vec2"), METHODS[method]())
    names = set(adapter_tensors(model, "default"))
    assert names and set(adapter_tensors(Sharded(around_layers(Sharded)(model)), "default")) == names


def test_an_adapter_is_saved_from_a_whole_model_in_a_wrapper():
    model = randomize(get_peft_model(make("wav2vec2"), METHODS["ipet"]()))
    expected = get_peft_model_state_dict(model)
    wrapped = Sharded(around_layers(Sharded)(model))
    torch.testing.assert_close(get_peft_model_state_dict(wrapped), expected, rtol=0, atol=0)


def test_torchs_wrappers_have_the_names_that_are_left_out():
    inner = nn.Sequential(nn.Linear(2, 2))
    for wrapped in (checkpoint_wrapper(inner), torch.compile(inner)):
        paths = {without_wrappers(path) for path, _ in wrapped.named_parameters()}
        assert paths == {"0.weight", "0.bias"}
    assert without_wrappers(f"a.{FSDP_WRAPPED_MODULE}.b") == "a.b"

"""Adapters that come and go leave nothing: no hook, tensor, module or name, however often."""

import gc
import sys
import weakref

import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny import METHODS, count_hooks, make, make_inputs, randomize
from torch import nn

from peft_audio import AutoPeftModelForAudioClassification, use_statistics_pooling
from peft_audio.tuner.tuner_layer import HookedTunerLayer


CYCLES = 1000


@pytest.fixture(scope="module", autouse=True)
def only_new_objects():
    """Let the garbage collector look at what these tests make, which is quick, and not at all that was imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def alive():
    """Numbers of tensors, of bytes in them, and of modules that Python still holds."""
    gc.collect()
    # By type: asking some of these objects for their class would run code.
    objects = [thing for thing in gc.get_objects() if issubclass(type(thing), (torch.Tensor, nn.Module))]
    tensors = [thing for thing in objects if isinstance(thing, torch.Tensor)]
    return len(tensors), sum(tensor.nbytes for tensor in tensors), len(objects) - len(tensors)


def parts_of(model):
    """What adapters add to a model, as numbers."""
    layers = [module for module in model.modules() if isinstance(module, HookedTunerLayer)]
    return {
        "hooks": count_hooks(model),
        "modules": len(list(model.modules())),
        "parameters": len(list(model.parameters())),
        "keys": list(model.state_dict()),
        "trainable": [name for name, parameter in model.named_parameters() if parameter.requires_grad],
        "adapters": list(model.peft_config),
        "entries": sum(len(value) for layer in layers for value in vars(layer).values() if isinstance(value, dict)),
    }


@torch.no_grad()
def logits(model, backbone):
    return model(**make_inputs(backbone)).logits


def come_and_go(model, name, method):
    model.add_adapter(name, METHODS[method]())
    model.set_adapter(name)
    model.set_adapter("default")
    model.delete_adapter(name)


def test_a_thousand_adapters_come_and_go():
    model = randomize(get_peft_model(make("ast", num_hidden_layers=1), METHODS["joint"]())).eval()
    expected = logits(model, "ast")
    parts, objects = parts_of(model), alive()
    for number in range(CYCLES // 2):  # until Python's own caches of names are full
        come_and_go(model, f"first{number}", "joint")
    assert alive() == objects
    blocks = sys.getallocatedblocks()
    for number in range(CYCLES // 2):
        come_and_go(model, f"adapter{number}", "joint")
    assert parts_of(model) == parts and alive() == objects
    assert sys.getallocatedblocks() - blocks < CYCLES // 4, "Python keeps something of the adapters that are gone"
    assert torch.equal(logits(model, "ast"), expected)


BASES = {
    "ast": lambda: ("ast", make("ast")),
    "weighted layers": lambda: ("wav2vec2", make("wav2vec2", use_weighted_layer_sum=True)),
    "statistics": lambda: ("wav2vec2", use_statistics_pooling(make("wav2vec2"))),
    "handed positions": lambda: ("wavlm", make("wavlm")),
}
each_base = pytest.mark.parametrize("base", BASES)


@each_base
@pytest.mark.parametrize("method", ["ipet", "conformer", "input_prompt"])
def test_adapters_that_are_used_between_come_and_go(base, method):
    backbone, model = BASES[base]()
    model = randomize(get_peft_model(model, METHODS[method]())).eval()
    labels, expected = torch.tensor([0, 3]), logits(model, backbone)
    come_and_go(model, "first", method)
    parts, objects = parts_of(model), alive()
    for number in range(5):
        name = f"adapter{number}"
        model.add_adapter(name, METHODS[method]())
        model.set_adapter(name)
        model(**make_inputs(backbone), labels=labels).loss.backward()
        model(**make_inputs(backbone), adapter_names=["default", name])
        with model.disable_adapter():
            logits(model, backbone)
        model.set_adapter("default")
        model.delete_adapter(name)
    assert torch.equal(logits(model, backbone), expected)
    assert parts_of(model) == parts and alive() == objects


def test_adapters_of_a_plain_model_come_and_go():
    model = make("ast")
    expected = logits(model, "ast")

    def come_and_go(name):
        model.add_adapter(METHODS["ipet"](), name)
        logits(model, "ast")
        model.delete_adapter(name)

    come_and_go("first")
    hooks, objects = count_hooks(model), alive()
    for number in range(30):
        come_and_go(f"adapter{number}")
    assert count_hooks(model) == hooks and alive() == objects
    assert torch.equal(logits(model, "ast"), expected)


@each_base
@pytest.mark.parametrize("method", ["ipet", "bottleneck_parallel", "input_prompt"])
def test_putting_on_and_unloading_leaves_the_base_model_alone(base, method):
    backbone, model = BASES[base]()
    expected, keys, hooks = logits(model, backbone), list(model.state_dict()), count_hooks(model)
    layers, wrappers, objects = weakref.WeakSet(), weakref.WeakSet(), None
    for _ in range(10):
        adapted = randomize(get_peft_model(model, METHODS[method](modules_to_save=[]))).eval()
        layers.update(module for module in adapted.modules() if isinstance(module, HookedTunerLayer))
        wrappers.update((adapted, adapted.base_model))
        assert not torch.equal(logits(adapted, backbone), expected) and len(layers) > 0
        model = adapted.unload()
        del adapted
        objects = objects or alive()
    assert alive() == objects and not layers and not wrappers
    assert list(model.state_dict()) == keys and count_hooks(model) == hooks
    torch.testing.assert_close(logits(model, backbone), expected)


def test_loaded_adapters_come_and_go(tmp_path):
    get_peft_model(make("ast"), METHODS["joint"]()).save_pretrained(tmp_path)
    model = get_peft_model(make("ast"), METHODS["joint"]()).eval()

    def load_and_delete(name):
        model.load_adapter(tmp_path, name)
        model.set_adapter(name)
        logits(model, "ast")
        model.set_adapter("default")
        model.delete_adapter(name)

    load_and_delete("first")
    parts, objects = parts_of(model), alive()
    for number in range(20):
        load_and_delete(f"adapter{number}")
    assert parts_of(model) == parts and alive() == objects


LOADERS = {
    "PeftModel": lambda folder: PeftModel.from_pretrained(make("ast"), folder),
    "AutoPeftModel": lambda folder: AutoPeftModelForAudioClassification.from_pretrained(folder),
    "load_adapter": lambda folder: load_into(make("ast"), folder),
}


def load_into(model, folder):
    model.load_adapter(folder)
    return model


@pytest.mark.parametrize("loader", LOADERS)
def test_models_that_are_loaded_and_dropped_are_gone(loader, tmp_path):
    make("ast").save_pretrained(tmp_path / "base")
    base = type(make("ast")).from_pretrained(tmp_path / "base")
    get_peft_model(base, METHODS["ipet"]()).save_pretrained(tmp_path / "adapter")
    del base
    before, layers = alive(), weakref.WeakSet()
    for _ in range(5):
        model = LOADERS[loader](tmp_path / "adapter")
        model.save_pretrained(tmp_path / "again")
        logits(model, "ast")
        layers.update(module for module in model.modules() if isinstance(module, HookedTunerLayer))
        assert len(layers) == 3
        del model
        assert alive() == before and not layers


@pytest.mark.parametrize("backbone", ["ast", "wav2vec2", "wavlm"])
@pytest.mark.parametrize("method", ["joint", "time_freq_conv", "conformer", "input_prompt"])
def test_passes_keep_no_tensors(backbone, method):
    model = get_peft_model(make(backbone), METHODS[method]()).eval()
    logits(model, backbone)
    after_one = alive()
    for size in (1, 5, 2):
        with torch.no_grad():
            model(**make_inputs(backbone, batch_size=size))
    assert alive() == after_one


def refuse_an_adapter(model):
    with pytest.raises(ValueError, match="`layers_to_transform`"):
        model.add_adapter("another", METHODS["joint"](layers_to_transform=9))


def refuse_an_input(model):
    with pytest.raises(RuntimeError, match="size of tensor"), torch.no_grad():
        model(input_values=torch.randn(1, 26, 36))


def interrupt_a_pass(model):
    def stop(module, args, output):
        raise InterruptedError

    handle = model.get_base_model().base_model.layers[1].register_forward_hook(stop)
    with pytest.raises(InterruptedError):
        logits(model, "ast")
    handle.remove()


@pytest.mark.parametrize("fail", [refuse_an_adapter, refuse_an_input, interrupt_a_pass])
def test_what_fails_keeps_nothing(fail):
    model = get_peft_model(make("ast"), METHODS["joint"]()).eval()
    fail(model)
    parts, objects = parts_of(model), alive()
    for _ in range(10):
        fail(model)
    assert parts_of(model) == parts and alive() == objects

"""What the package relies on inside torch: where a module keeps its hooks and its parameters, what tensors tell."""

import copy
import inspect

import pytest
import torch
from torch import nn

from peft_audio.upstream import hooks, torch_modules, torch_tensors


HOOKS = "adapters can no longer be taken off a model: torch keeps a module's hooks elsewhere"


class Owner:
    def before(self, module, args, kwargs):
        return args, kwargs

    def after(self, module, args, output):
        return output + 1


def test_modules_keep_their_hooks_where_they_are_removed_from():
    model, owner, other = nn.Sequential(nn.Linear(2, 2)), Owner(), Owner()
    for each in (owner, other):
        model[0].register_forward_pre_hook(each.before, with_kwargs=True)
        model[0].register_forward_hook(each.after, always_call=True)
    assert hooks.forward_hooks(model[0]) == [owner.before, other.before, owner.after, other.after], HOOKS
    assert hooks.remove_hooks(model, owner) == [owner, owner], HOOKS
    assert list(hooks.owners_of_hooks(model[0])) == [other, other], HOOKS
    zeros = torch.zeros(1, 2)
    assert torch.equal(model(zeros), nn.functional.linear(zeros, model[0].weight, model[0].bias) + 1)
    assert hooks.remove_hooks(model, Owner) == [other, other], HOOKS
    left = [getattr(model[0], name) for name in (*hooks.HOOKS, *hooks.NOTES)]
    assert not any(left), f"{HOOKS}: notes about hooks are left behind"


def test_hooks_on_all_modules_are_seen():
    """Else the last layer leaves out tokens that such a hook (of a profiler) reads."""
    assert not hooks.has_global_hooks()
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: None)
    try:
        assert hooks.has_global_hooks()
    finally:
        handle.remove()
    assert not hooks.has_global_hooks()


def test_an_attribute_of_the_object_hides_a_parameter():
    """Else `use_weighted_layer_sum` ignores the weights that an adapter trained."""
    module = nn.Linear(2, 2)
    own, other = module.bias, torch.ones(2)
    torch_modules.install_stand_in(module, "bias", other)
    assert module.bias is other, "the parameter is found before the object's attribute"
    assert dict(module.named_parameters())["bias"] is own, "the parameter is lost"
    assert torch.equal(module(torch.zeros(1, 2))[0], other)
    torch_modules.remove_stand_in(module, "bias")
    torch_modules.remove_stand_in(module, "bias")
    assert module.bias is own


def test_modules_are_copied_with_other_tensors_by_the_memo():
    """Else `load_adapter` needs the memory of a second base model to find the tensors' places."""
    module = nn.Linear(2, 2)
    memo = {id(p): nn.Parameter(p.to("meta")) for p in module.parameters()}
    assert all(parameter.is_meta for parameter in copy.deepcopy(module, memo).parameters())
    assert not module.weight.is_meta


def test_an_attribute_of_the_object_is_called_in_place_of_forward():
    """Else models compute their frozen part again and ignore the states of `cache_frozen`."""
    module, ones = nn.Linear(2, 2), torch.ones(1, 2)
    expected = module(ones)
    nothing = torch_modules.install_stand_in(module, "forward", lambda states: states)
    before = torch_modules.install_stand_in(module, "forward", lambda states: 2 * states)
    assert torch.equal(module(ones), 2 * ones), "a module calls its class's `forward`"
    torch_modules.remove_stand_in(module, "forward", before)
    assert torch.equal(module(ones), ones)
    torch_modules.remove_stand_in(module, "forward", nothing)
    assert torch.equal(module(ones), expected) and "forward" not in vars(module)


# ---- modules that are random or change in training mode --------------------------------------------------------------


def modules_named(part):
    classes = [cls for name, cls in vars(nn).items() if part in name and not name.startswith("Lazy")]
    arguments = {"BatchNorm": {"num_features": 2}, "Dropout": {"p": 0.5}}[part]
    return [cls(**arguments) for cls in classes]


def test_every_batch_norm_is_recognized():
    """Else frozen batch norms follow the data, and `cache_frozen` does not name them."""
    found = modules_named("BatchNorm")
    assert len(found) >= 4 and all(torch_modules.is_batch_norm(module) for module in found)
    assert all(module.running_mean is not None for module in found)
    assert not torch_modules.is_batch_norm(nn.InstanceNorm1d(2)) and not torch_modules.is_batch_norm(nn.LayerNorm(2))


def test_every_dropout_is_recognized():
    """Else `cache_frozen` does not name the modules that make the frozen part random."""
    found = modules_named("Dropout")
    assert len(found) >= 6 and all(torch_modules.drops_out(module) for module in found)
    assert not torch_modules.drops_out(nn.Dropout(0.0)) and not torch_modules.drops_out(nn.Linear(2, 2))


def test_copies_made_by_data_parallel_are_recognized():
    """Else cached states run under DataParallel, where each copy has a part of the batch and no stand-ins."""
    module = nn.Linear(2, 2)
    assert not torch_modules.is_replica(module)
    assert torch_modules.is_replica(module._replicate_for_data_parallel())


# ---- tensors ---------------------------------------------------------------------------------------------------------


def test_a_tensor_counts_its_changes():
    """Else a model runs from cached states though its frozen weights have changed since."""
    parameter = nn.Linear(2, 2).weight
    before = torch_tensors.version_of(parameter)
    parameter.sum().backward()
    assert torch_tensors.version_of(parameter) == before, "reading counts as a change"
    with torch.no_grad():
        parameter.add_(1.0)
    changed = torch_tensors.version_of(parameter)
    torch.optim.SGD([parameter], lr=0.1).step()
    assert before < changed < torch_tensors.version_of(parameter)


def test_sharded_tensors_are_recognized():
    """Else `cache_frozen` takes one process's part of the frozen weights for all of them."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        module = nn.Linear(2, 2)
        assert not torch_tensors.is_sharded(module.weight)
        torch.distributed.fsdp.fully_shard(module, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
        assert torch_tensors.is_sharded(module.weight)
    finally:
        torch.distributed.destroy_process_group()


def test_zero_marks_the_parameters_that_it_shards():
    """Else `cache_frozen` takes one process's part of the frozen weights for all of them."""
    zero = pytest.importorskip("deepspeed.runtime.zero.partition_parameters")
    parameter = nn.Linear(2, 2).weight
    parameter.ds_id = 0
    assert torch_tensors.is_sharded(parameter)
    assert "param.ds_id = " in inspect.getsource(zero.Init._convert_to_deepspeed_param)


def test_quantized_tensors_say_of_which_tensors_they_are_made():
    """Else `cache_frozen` does not notice that quantized frozen weights have changed."""
    quantization = pytest.importorskip("torchao.quantization")
    layers = [nn.Linear(32, 32) for _ in range(2)]
    assert torch_tensors.inner_tensors(layers[0].weight) == []
    for layer in layers:
        quantization.quantize_(layer, quantization.Int8WeightOnlyConfig())
    first, second = (torch_tensors.inner_tensors(layer.weight) for layer in layers)
    assert len(first) >= 2 and all(type(tensor) is torch.Tensor for tensor in first)
    assert any(not torch.equal(one, other) for one, other in zip(first, second))

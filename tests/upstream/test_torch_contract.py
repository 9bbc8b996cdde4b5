"""What the package relies on inside torch: where a module keeps its hooks and its parameters."""

import copy

import torch
from torch import nn

from peft_audio.upstream import hooks, torch_modules


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

"""The last layer of a classifier whose head reads special tokens alone: what is left out, and that nobody misses it."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import get_peft_model
from tiny import METHODS, NOT_IN_LAYERS, NUM_LAYERS, count_hooks, make, make_inputs, randomize, trainable
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from transformers import DeiTForImageClassificationWithTeacher, ViTForImageClassification
from transformers.modeling_outputs import ImageClassifierOutput

from peft_audio import use_mean_token_pooling
from peft_audio.tuner.read_tokens import ReadTokens, remove_read_tokens
from peft_audio.tuner.tuner_layer import base_layer_of
from peft_audio.utils.around import owners_of_wrappers


NUM_TOKENS = {"ast": 14, "vit": 10, "deit": 11, "deit with teacher": 11}  # special ones and patches
READ = 2  # of AST and DeiT; of ViT it is one
MIX_ALL_TOKENS = ("conformer", "side_conv", "side_attention")
IN_LAYERS = [method for method in METHODS if method not in NOT_IN_LAYERS]


def make_classifier(backbone, **options):
    if backbone != "deit with teacher":
        return make(backbone, **options)
    torch.manual_seed(0)
    return DeiTForImageClassificationWithTeacher(make("deit").config).eval()


def adapted(backbone="ast", method="joint", base=None, **options):
    return randomize(get_peft_model(base or make_classifier(backbone), METHODS[method](**options))).eval()


def inputs_of(backbone="ast", **options):
    return make_inputs(backbone.split()[0], **options)


def trunk_of(model):
    return model.get_base_model().base_model


def in_whole(model):
    """The same model, whose last layer puts out every token."""
    twin = copy.deepcopy(model)
    remove_read_tokens(twin.get_base_model())
    return twin


def rows_of(model):
    """A list that grows by the numbers of rows that the modules in the last layer run over."""
    seen, layer = [], base_layer_of(trunk_of(model).layers[-1])
    for module in (layer.attention.q_proj, layer.attention.o_proj, layer.mlp.fc1, layer.mlp.fc2):
        module.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    return seen


@torch.no_grad()
def logits(model, backbone="ast", **options):
    return model(**inputs_of(backbone), **options).logits


def results(model, backbone="ast", **options):
    model.zero_grad()
    inputs = {name: value.double() for name, value in inputs_of(backbone).items()}
    output = model.double()(**inputs, **options).logits  # in double precision only a mistake makes a difference
    output.square().mean().backward()
    return {"logits": output.detach(), **{name: parameter.grad for name, parameter in trainable(model).items()}}


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backbone", NUM_TOKENS)
@pytest.mark.parametrize("method", IN_LAYERS)
def test_the_last_layer_runs_over_the_tokens_that_the_head_reads(backbone, method):
    model = adapted(backbone, method).train()
    seen, num_tokens = rows_of(model), NUM_TOKENS[backbone]
    actual = results(model, backbone)
    # Where tokens are mixed, and the special ones with them, all of them are needed.
    read = 1 if backbone == "vit" else READ
    assert seen == [num_tokens if method in MIX_ALL_TOKENS else read] * 4
    expected = results(model, backbone, output_hidden_states=True)
    assert seen[4:] == [num_tokens] * 4
    assert all(value.abs().max() > 0 for name, value in expected.items() if "bias" not in name)
    assert_close(actual, expected)


class ReadsAll(ViTForImageClassification):
    """A user's classifier whose head reads the mean of all tokens."""

    def forward(self, pixel_values=None, output_hidden_states=None, **kwargs):
        output = self.vit(pixel_values, output_hidden_states=output_hidden_states, **kwargs)
        return ImageClassifierOutput(logits=self.classifier(output.last_hidden_state.mean(1)))


@pytest.mark.parametrize("method", IN_LAYERS)
def test_a_users_own_head_gets_all_tokens(method):
    base = make("vit")
    base.__class__ = ReadsAll
    model = adapted("vit", method, base)
    with torch.no_grad():
        expected = model(**inputs_of("vit"), output_hidden_states=True).logits
        assert_close(model(**inputs_of("vit")).logits, expected)


@pytest.mark.parametrize("by_config", [False, True])
@pytest.mark.parametrize("asked", ["hidden_states", "attentions"])
def test_outputs_that_are_asked_for_are_whole(asked, by_config):
    model = adapted(base=make("ast", attn_implementation="eager"))
    expected = in_whole(model)(**inputs_of(), **{f"output_{asked}": True})
    assert len(expected[asked]) == NUM_LAYERS + (asked == "hidden_states")
    assert expected[asked][-1].shape == ((2, 14, 32) if asked == "hidden_states" else (2, 4, 14, 3 + 14))
    if by_config:
        setattr(model.get_base_model().config, f"output_{asked}", True)
    actual = model(**inputs_of(), **({} if by_config else {f"output_{asked}": True}))
    assert_close([actual.logits, *actual[asked]], [expected.logits, *expected[asked]])


@pytest.mark.parametrize("bare", [False, True], ids=["called by itself", "adapted by itself"])
@torch.no_grad()
def test_the_trunk_alone_gives_every_token(bare):
    model = adapted(base=make("ast", bare=bare))
    assert model(**inputs_of())[0].shape == ((2, 14, 32) if bare else (2, 5))
    actual = trunk_of(model)(**inputs_of()).last_hidden_state
    last = trunk_of(model)(**inputs_of(), output_hidden_states=True).hidden_states[-1]
    assert actual.shape == (2, 14, 32)
    assert_close(actual, trunk_of(model).layernorm(last))


@pytest.mark.parametrize("place", ["", "layers.2", "layers.2.base_layer", "layernorm"])
def test_a_hook_of_the_user_sees_every_token(place):
    model, outputs = adapted(), []
    whole, seen = in_whole(model), rows_of(model)
    for each in (model, whole):
        handle = (
            trunk_of(each)
            .get_submodule(place)
            .register_forward_hook(lambda module, args, output: outputs.append(output))
        )
        logits(each)
        handle.remove()
    actual, expected = (getattr(output, "last_hidden_state", output) for output in outputs)
    assert actual.shape == (2, 14, 32)
    assert_close(actual, expected)
    logits(model)
    assert seen == [14] * 4 + [READ] * 4  # the hook is gone


@pytest.mark.parametrize("place", ["layers.2", "layers.2.base_layer", "layernorm"])
def test_a_hook_in_front_sees_every_token(place):
    model, seen = adapted(), []
    module = trunk_of(model).get_submodule(place)
    module.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    logits(model)
    assert seen == [(2, 14, 32)]


def test_a_head_on_the_mean_of_all_tokens_gets_them():
    model = adapted(base=use_mean_token_pooling(make("ast")))
    expected, seen = logits(in_whole(model)), rows_of(model)
    assert_close(logits(model), expected)
    assert seen == [14] * 4


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("method", ["joint", "time_freq_conv"])
def test_checkpointed_layers_have_the_same_gradients(use_reentrant, method):
    model = adapted(method=method).train()
    expected = results(in_whole(model))
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert_close(results(model), expected)


@pytest.mark.parametrize("length", [9, 14])
def test_tokens_can_be_hidden_by_a_mask(length):
    model, mask = adapted(), torch.ones(2, 14, dtype=torch.long)
    mask[1, length:] = 0
    actual = logits(model, attention_mask=mask)
    assert_close(actual, logits(in_whole(model), attention_mask=mask))
    assert torch.allclose(actual[1], logits(model)[1], atol=1e-4) == (length == 14)


def test_disabled_adapters_leave_the_base_model_s_logits():
    base = make("ast")
    expected = logits(base)
    model = adapted(base=base, modules_to_save=[])
    with model.disable_adapter():
        assert torch.equal(logits(model), expected)
    assert not torch.allclose(logits(model), expected, atol=1e-3)


def test_a_mixed_batch_gives_what_its_adapters_give():
    model = adapted()
    model.add_adapter("second", METHODS["joint"](init_weights=False))
    expected = []
    for index, name in enumerate(["default", "second"]):
        model.set_adapter(name)
        expected.append(logits(in_whole(model))[index])
    seen = rows_of(model)
    assert_close(logits(model, adapter_names=["default", "second"]), torch.stack(expected))
    assert set(seen) == {READ}


def test_adapters_in_lower_layers_leave_the_last_layer_alone():
    model = adapted(layers_to_transform=[0, 1])
    owners = [*owners_of_wrappers(model.get_base_model()), *owners_of_wrappers(trunk_of(model))]
    assert owners and not any(isinstance(owner, ReadTokens) for owner in owners)
    model.add_adapter("second", METHODS["joint"](init_weights=False))
    model.eval()
    expected, seen = logits(in_whole(model)), rows_of(model)
    assert_close(logits(model), expected)
    model.set_adapter("second")
    logits(model)
    assert seen == [14] * 4 + [READ] * 4


@pytest.mark.parametrize(
    "place, error",
    [("model", OSError), ("patches", OSError), ("patches", KeyboardInterrupt), ("last layer", KeyboardInterrupt)],
)
@torch.no_grad()
def test_a_call_that_fails_leaves_the_next_one_of_the_trunk_whole(place, error):
    model = adapted()
    expected = trunk_of(model)(**inputs_of()).last_hidden_state
    inner = {"patches": "embeddings.patch_embeddings.projection", "last layer": "layers.2.base_layer.attention.q_proj"}
    module = trunk_of(model).get_submodule(inner[place]) if place in inner else model.get_base_model()

    def stop(module, args):
        raise error

    handle = module.register_forward_pre_hook(stop)
    with pytest.raises(error):
        logits(model)
    handle.remove()
    torch.testing.assert_close(trunk_of(model)(**inputs_of()).last_hidden_state, expected, atol=0, rtol=0)


def test_the_same_hooks_serve_all_adapters_and_go_with_them():
    base = make("ast")
    num_hooks = count_hooks(base)
    model = get_peft_model(base, METHODS["joint"]())
    num_adapted, places = count_hooks(base), (base, trunk_of(model))
    wrappers = [vars(module)["forward"].wrappers for module in places]
    for name in ("second", "third"):
        assert [len(each) for each in wrappers] == [2, 2] and count_hooks(base) == num_adapted
        model.add_adapter(name, METHODS["joint"]())
    assert count_hooks(model.unload()) == num_hooks


def test_threads_get_what_they_ask_for():
    model, barrier = adapted(), threading.Barrier(2, timeout=20)
    expected = in_whole(model)(**inputs_of(), output_hidden_states=True)

    def wait(module, args):
        barrier.wait()

    # Both have been told what to read before one of them goes on, and then they go in step.
    model.get_base_model().register_forward_pre_hook(wait)
    for layer in trunk_of(model).layers:
        for module in (layer.base_layer.attention.q_proj, layer.base_layer.mlp.fc1):
            module.register_forward_pre_hook(wait)
    seen = rows_of(model)

    def classify(asked):
        with torch.no_grad():
            return model(**inputs_of(), output_hidden_states=asked)

    with ThreadPoolExecutor(2) as pool:
        plain, full = pool.map(classify, [False, True])
    assert sorted(seen) == [READ] * 4 + [14] * 4 and plain.hidden_states is None
    assert_close([full.logits, *full.hidden_states], [expected.logits, *expected.hidden_states])
    assert_close(plain.logits, expected.logits)


@pytest.mark.parametrize("implementation", CheckpointImpl)
def test_a_layer_that_is_checkpointed_from_outside_runs_whole(implementation):
    model = adapted().train()
    expected = gradients_of(model)
    layers = trunk_of(model).layers
    layers[-1] = checkpoint_wrapper(layers[-1], checkpoint_impl=implementation)
    assert_close(gradients_of(model), expected)


def gradients_of(model):
    model.zero_grad()
    model(**inputs_of(), labels=torch.tensor([0, 3])).loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

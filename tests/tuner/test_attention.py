"""Prompts as keys and values alone: what runs over them, their gradients, and the configuration that lets them in."""

import copy
import pickle

import pytest
import tiny
import torch
from prompted import assert_close, attentions_of, inputs_of, layers_of, prompted, results
from tiny import NUM_LAYERS, make, make_inputs, randomize

from peft_audio import IPETConfig
from peft_audio.backbones.table import resolve
from peft_audio.tuner.attention import AttentionConfig, remove_extra_tokens, takes_extra_tokens


OTHERS = [
    name for name in tiny.BACKBONES if name.startswith(("sew-d", "wav2vec2-bert", "wav2vec2-conformer", "wavlm"))
]
WITH_EXTRA_KEYS = [name for name in tiny.BACKBONES if name not in OTHERS]


def spec_of(model):
    return resolve(model.get_base_model()).spec


def record_inputs(module):
    shapes = []
    module.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
    return shapes


@pytest.mark.parametrize("backbone", WITH_EXTRA_KEYS)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_prompts_are_projected_to_keys_and_values_alone_and_once_for_the_batch(backbone, dropout):
    model = prompted(backbone, prompt_dropout=dropout)
    assert all(takes_extra_tokens(module, spec_of(model)) for module in attentions_of(model))
    names = ["q_proj", "k_proj", "v_proj"]
    names.append("out_proj" if hasattr(attentions_of(model)[0], "out_proj") else "o_proj")
    recorded = [[record_inputs(getattr(module, name)) for name in names] for module in attentions_of(model)]
    output = model(**make_inputs(backbone, batch_size=4), output_hidden_states=True)
    tokens, prompts = tuple(output.hidden_states[0].shape), (4 if dropout else 1, 3, tiny.HIDDEN_SIZE)
    assert recorded == [[[tokens], [tokens, prompts], [tokens, prompts], [tokens]]] * NUM_LAYERS
    model.eval()(**make_inputs(backbone, batch_size=4), output_hidden_states=True)
    assert all(shapes[-1] == (1, *prompts[1:]) for projections in recorded for shapes in projections[1:3])


@pytest.mark.parametrize("backbone", OTHERS)
def test_attention_of_other_kinds_reads_prompts_in_front_of_its_tokens(backbone):
    model, lengths = prompted(backbone), []

    def record(module, args, kwargs, output):
        lengths.append(((args[0] if args else kwargs["hidden_states"]).shape[1], output[0].shape[1]))

    for module in attentions_of(model):
        assert not takes_extra_tokens(module, spec_of(model)) and not isinstance(
            getattr(module, "config", None), AttentionConfig
        )
        module.register_forward_hook(record, with_kwargs=True)
    num_tokens = model(**make_inputs(backbone), output_hidden_states=True).hidden_states[0].shape[1]
    assert lengths == [(num_tokens + 3, num_tokens)] * NUM_LAYERS


@pytest.mark.parametrize("backbone", WITH_EXTRA_KEYS)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("num_adapters", [1, 2])
def test_extra_keys_give_what_prompts_in_front_give(backbone, implementation, num_adapters):
    model = prompted(backbone, "ipet", make(backbone, attn_implementation=implementation))
    if num_adapters == 2:
        dropout = {"dropout": 0.0, "prompt_dropout": 0.5}
        config = IPETConfig(num_virtual_tokens=2, bottleneck_dim=4, init_weights=False, modules_to_save=[], **dropout)
        model.add_adapter("second", config)
        model.base_model.set_adapter(["default", "second"])
    model.double()  # where only a mistake makes a difference
    forms = [False, True] if backbone in tiny.WITH_PADDING else [False]
    batches = [inputs_of(backbone, padded, torch.float64) for padded in forms]
    actual = [results(model, inputs) for inputs in batches]
    assert sum("prompt" in name for name in actual[0]) == NUM_LAYERS * num_adapters
    for layer, module in zip(layers_of(model), attentions_of(model)):
        layer._takes_extra_tokens = False
        remove_extra_tokens(module)
    assert_close(actual, [results(model, inputs) for inputs in batches])


@pytest.mark.parametrize("backbone", WITH_EXTRA_KEYS)
def test_only_the_name_of_the_function_differs_in_the_configuration_of_attention(backbone):
    base, names = make(backbone), []
    originals = {module: module.config for module in base.modules() if hasattr(module, "k_proj")}
    before, model = base.config.to_dict(), prompted(backbone, base=base)
    for module in attentions_of(model):
        for projection in (module.q_proj, module.k_proj):  # of the tokens, then of the prompts while sdpa runs
            projection.register_forward_hook(lambda *_, own=module.config: names.append(own._attn_implementation))
    model(**make_inputs(backbone), output_hidden_states=True)
    assert names == ["peft_audio", "peft_audio", "sdpa"] * NUM_LAYERS
    for module in attentions_of(model):
        assert module.config._attn_implementation == "peft_audio"
        assert all(getattr(module.config, name) is value for name, value in vars(originals[module]).items())
    assert base.config.to_dict() == before and base.config._attn_implementation == "sdpa"
    assert model.unload() is base and all(module.config is config for module, config in originals.items())


@torch.no_grad()
def logits(model):
    return model(**make_inputs("ast")).logits


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_adapters_of_its_own(duplicate):
    model = prompted("ast").eval()
    twin, expected = duplicate(model), logits(model)
    assert torch.equal(logits(twin), expected)
    for module, own in zip(attentions_of(model), attentions_of(twin)):
        assert isinstance(own.config, AttentionConfig) and own.config.forward_pass is not module.config.forward_pass
        assert own.config.original is twin.get_base_model().config
    changed = logits(randomize(twin))
    assert torch.equal(logits(model), expected) and not torch.allclose(changed, expected, atol=1e-3)
    randomize(model, seed=5, std=1.0)
    assert torch.equal(logits(twin), changed)


def test_attention_can_be_exchanged_on_an_adapted_model():
    model = prompted("ast").eval()
    expected = logits(model)
    model.get_base_model().set_attn_implementation("eager")
    assert_close(logits(model), expected)
    attentions = model(**make_inputs("ast"), output_attentions=True).attentions
    assert [weights.shape for weights in attentions] == [(2, 4, 14, 3 + 14)] * NUM_LAYERS
    assert_close([weights.sum(-1) for weights in attentions], [torch.ones(2, 4, 14)] * NUM_LAYERS)


def refuse(*args, **kwargs):
    raise InterruptedError


@pytest.mark.parametrize("place", ["q_proj", "o_proj", "kernel"])
def test_a_call_that_fails_within_attention_leaves_the_next_ones_right(place, monkeypatch):
    base = make("ast")
    plain = logits(base)
    model = prompted("ast", base=base, modules_to_save=[]).eval()
    expected = logits(model)

    def fail():
        with monkeypatch.context() as patch, pytest.raises(InterruptedError):
            kernel = (torch.nn.functional, "scaled_dot_product_attention")
            patch.setattr(
                *(kernel if place == "kernel" else (getattr(attentions_of(model)[1], place), "forward")), refuse
            )
            model(**make_inputs("ast"))

    fail()
    assert torch.equal(logits(model), expected)
    fail()
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
    fail()
    assert torch.equal(logits(model.unload()), plain)

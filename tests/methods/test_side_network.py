"""A side network: its equations in plain torch, what it keeps for the backward pass, and the states of a pass."""

import copy
import math

import pytest
import torch
from peft import PeftModel, get_peft_model
from reference import convolve
from tiny import (
    BACKBONES,
    BESIDE_LAYERS,
    HIDDEN_SIZE,
    METHODS,
    NUM_LAYERS,
    each_backbone,
    each_typical_backbone,
    make,
    make_inputs,
    make_padded_inputs,
    randomize,
    same,
    trainable,
)
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.functional import gelu, layer_norm
from transformers import ASTConfig, ASTForAudioClassification

from peft_audio import SideNetworkConfig, save_activations_in_half
from peft_audio.backbones.table import resolve
from peft_audio.modules import DepthwiseConv, SideBlock, TokenLayout
from peft_audio.tuner.tuner_layer import base_layer_of


GRIDS = {"ast": (3, 4), "wav2vec2": (1, 38), "wav2vec2-stable": (1, 38)}
LABELS = torch.tensor([0, 3])
each_block = pytest.mark.parametrize("method", BESIDE_LAYERS)


def adapted(backbone="ast", method="side_network", **options):
    return randomize(get_peft_model(BACKBONES[backbone](), METHODS[method](**options))).eval()


def layers_of(model):
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return [base.get_submodule(name) for name in resolve(base).layer_names]


@torch.no_grad()
def logits(model, inputs, **options):
    return model(**inputs, **options).logits


# ---- the equations ---------------------------------------------------------------------------------------------------


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def normal(x, w, name):
    return layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def convolved(x, w, grid):
    dense = torch.diag_embed(w["mixer.weight"][:, 0].permute(1, 2, 0)).permute(2, 3, 0, 1)
    y, special = convolve(x, dense, grid), x.shape[1] - grid[0] * grid[1]
    y[:, :special] += y[:, special:].mean(dim=1, keepdim=True)
    return y


def attended(x, w, grid):
    queries, keys, values = (
        part.reshape(*x.shape[:2], 4, -1).transpose(1, 2) for part in (x @ w["mixer.qkv.weight"].T).chunk(3, dim=-1)
    )
    weights = (queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[-1])).softmax(dim=-1)
    return linear((weights @ values).transpose(1, 2).flatten(2), w, "mixer.project")


MIXERS = {"side_network": None, "side_conv": convolved, "side_attention": attended}


def side_state(outputs, weights, grid, mix):
    """The state after these layers' outputs (LST, section 3.2)."""
    state = 0
    for h, w in zip(outputs, weights):
        gate = 1 / (1 + torch.exp(-10 * w["gate"]))
        state = gate * linear(layer_norm(h, h.shape[-1:]), w, "down") + (1 - gate) * state
        if mix is not None:
            state = state + mix(normal(state, w, "mixer_norm"), w, grid)
        state = state + linear(gelu(linear(normal(state, w, "norm"), w, "widen")), w, "narrow")
    return state


def weights_of(layer, part):
    return {name: value.detach() for name, value in layer.part(part)["default"].state_dict().items()}


@each_typical_backbone
@each_block
@pytest.mark.parametrize("layers", [None, [0, 1], [1]])
@torch.no_grad()
def test_what_the_head_reads_follows_the_equations(backbone, method, layers):
    model, inputs, outputs = adapted(backbone, method, layers_to_transform=layers), make_inputs(backbone), []
    base = BACKBONES[backbone]()
    handles = [layer.register_forward_hook(lambda *given: outputs.append(given[-1])) for layer in layers_of(base)]
    base(**inputs)
    for handle in handles:
        handle.remove()
    chosen = range(NUM_LAYERS) if layers is None else layers
    weights = [weights_of(layers_of(model)[index], "side") for index in chosen]
    state = side_state([outputs[index] for index in chosen], weights, GRIDS[backbone], MIXERS[method])
    end = weights_of(layers_of(model)[-1], "side_output")
    added = linear(normal(state, end, "norm"), end, "up")
    layers_of(base)[-1].register_forward_hook(lambda *given: given[-1] + added)
    heads = {name.replace("modules_to_save.default.", ""): p for name, p in model.get_base_model().named_parameters()}
    base.load_state_dict({name: heads.get(name, value) for name, value in base.state_dict().items()})
    torch.testing.assert_close(logits(model, inputs), logits(base, inputs), atol=2e-5, rtol=1e-4)
    assert added.abs().max() > 0.1


@pytest.mark.parametrize("gate", ["scalar", "vector"])
@pytest.mark.parametrize(
    "block, mixing", [("mlp", 0), ("conv", 96 * 2 + 96 * 9), ("attention", 96 * 2 + 4 * 96**2 + 96)]
)
def test_the_number_of_parameters(gate, block, mixing):
    with torch.device("meta"):
        model = ASTForAudioClassification(ASTConfig())
        model = get_peft_model(model, SideNetworkConfig(block=block, gate=gate, modules_to_save=[]))
    d, w = 768, 96
    one = d * w + w + (1 if gate == "scalar" else w) + mixing + 4 * w**2 + 5 * w
    assert model.get_nb_trainable_parameters()[0] == 12 * one + 2 * w + w * d + d


def test_a_gate_takes_half_of_either_at_first_and_learns_fast():
    block = SideBlock(8, 4, num_gates=1, activation=torch.nn.GELU())
    torch.nn.init.zeros_(block.narrow.weight)
    torch.nn.init.zeros_(block.narrow.bias)
    hidden, state = torch.randn(2, 3, 8), torch.randn(2, 3, 4)
    taken = block.down(layer_norm(hidden, (8,)))
    torch.testing.assert_close(block(hidden, None, state), (taken + state) / 2)
    torch.testing.assert_close(block(hidden), taken / 2)
    with torch.no_grad():
        block.gate.fill_(1.0)
    torch.testing.assert_close(block(hidden, None, state), taken, atol=1e-3, rtol=1e-3)


def test_convolutions_tell_special_tokens_of_the_grid_and_not_of_padding():
    conv, tokens = DepthwiseConv(4, (3, 3)), torch.randn(2, 2 + 12, 4)
    mask = torch.ones(2, 14, dtype=torch.bool)
    mask[1, 8:] = False
    other = tokens.clone()
    other[1, 8:] = 100.0
    layout = TokenLayout((3, 4), mask)
    torch.testing.assert_close(conv(tokens, layout)[:, :8], conv(other, layout)[:, :8])
    other[0, 5] += 1
    assert not torch.allclose(conv(tokens, layout)[0, :2], conv(other, layout)[0, :2])


# ---- the backward pass -----------------------------------------------------------------------------------------------


def saved_within(model, inputs):
    """Numbers of tensors that base layers, and all there is, keep for the backward pass."""
    inside, total, depth = [], [], []
    for layer in layers_of(model):
        base_layer_of(layer).register_forward_pre_hook(lambda *_: depth.append(1))
        base_layer_of(layer).register_forward_hook(lambda *_: depth.pop() and None)

    def pack(tensor):
        (inside if depth else total).append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**inputs, labels=LABELS).loss.backward()
    return inside, total


@each_backbone
@each_block
@pytest.mark.parametrize("checkpointing", [False, True])
def test_encoder_layers_keep_nothing_for_the_backward_pass_and_run_once(backbone, method, checkpointing):
    model, runs = adapted(backbone, method).train(), []
    if checkpointing:
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    for layer in layers_of(model):
        base_layer_of(layer).register_forward_hook(lambda module, args, output: runs.append(output))
    inside, total = saved_within(model, make_inputs(backbone))
    assert total and (inside == [] or checkpointing)  # torch's checkpointing keeps what enters a layer
    outputs = [output[0] if isinstance(output, tuple) else output for output in runs]
    assert len(outputs) == NUM_LAYERS and not any(output.requires_grad for output in outputs)
    assert all(parameter.grad.abs().max() > 0 for parameter in trainable(model).values())


@pytest.mark.parametrize("backbone", ["ast", "vit", "deit"])
def test_blocks_without_mixers_see_the_tokens_that_the_head_reads(backbone):
    model, seen = adapted(backbone).train(), []
    for layer in layers_of(model):
        layer.part("side")["default"].register_forward_hook(lambda *given: seen.append(given[-1].shape[1]))
    model(**make_inputs(backbone))
    assert seen == [1 if backbone == "vit" else 2] * NUM_LAYERS
    model(**make_inputs(backbone), output_hidden_states=True)
    assert seen[NUM_LAYERS:] == [{"ast": 14, "vit": 10, "deit": 11}[backbone]] * NUM_LAYERS


def test_half_precision_is_for_what_the_side_network_keeps_too():
    model = save_activations_in_half(adapted("wav2vec2", "side_conv").train())
    expected = adapted("wav2vec2", "side_conv").train()
    for each in (model, expected):
        torch.manual_seed(0)
        each(**make_inputs("wav2vec2"), labels=LABELS).loss.backward()
    for ours, theirs in zip(trainable(model).values(), trainable(expected).values()):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-2)


# ---- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layers, every, chosen", [(None, 1, [0, 1, 2]), (None, 2, [0, 2]), (None, 3, [2]), ([0, 1], 2, [1]), ([], 2, [])]
)
def test_every_nth_of_the_chosen_layers_is_read(layers, every, chosen, tmp_path):
    model = adapted(layers_to_transform=layers, every_nth_layer=every, modules_to_save=["classifier"])
    found = [
        index
        for index, layer in enumerate(layers_of(model))
        if base_layer_of(layer) is not layer and layer.part("side")
    ]
    assert found == chosen
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(make("ast"), tmp_path)
    assert same(logits(again, make_inputs("ast")), logits(model, make_inputs("ast")))


def test_a_state_dict_says_which_layers_are_read():
    from peft import get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict

    model = adapted(every_nth_layer=2, modules_to_save=[])
    state, config = get_peft_model_state_dict(model), SideNetworkConfig(reduction_factor=4, modules_to_save=[])
    with pytest.warns(RuntimeWarning, match=r"layers \[0, 2\], but .* \[0, 1, 2\]"):
        other = inject_adapter_in_model(config, make("ast"), state_dict=state)
    set_peft_model_state_dict(other, state)
    assert same(logits(other, make_inputs("ast")), logits(model, make_inputs("ast")))


def test_a_layer_on_its_own_has_no_state():
    model = adapted()
    with pytest.raises(RuntimeError, match="outside of a pass of its model.*gradient_checkpointing_enable"):
        layers_of(model)[1](torch.randn(1, 14, HIDDEN_SIZE))
    with model.disable_adapter():
        assert layers_of(model)[1](torch.randn(1, 14, HIDDEN_SIZE)).isfinite().all()


def test_what_torch_runs_again_is_refused_and_not_trained_wrongly():
    model = adapted("vit", "side_conv").train()
    layers = model.get_base_model().vit.layers
    for index, layer in enumerate(layers):
        layers[index] = checkpoint_wrapper(layer)
    loss = model(**make_inputs("vit"), labels=LABELS).loss
    with pytest.raises(RuntimeError, match="outside of a pass of its model"):
        loss.backward()


# ---- several adapters ------------------------------------------------------------------------------------------------


def with_two(backbone, first, second, **options):
    model = adapted(backbone, first, modules_to_save=[])
    model.add_adapter("second", METHODS[second](modules_to_save=[], **options))
    model.set_adapter("second")
    return randomize(model, seed=5).eval()


def added_by(model, inputs, names):
    """What the last layer adds, with these adapters active."""
    captured = {}
    layer = layers_of(model)[-1]
    handles = [
        layer.register_forward_hook(lambda *given: captured.update(after=given[-1])),
        layer.base_layer.register_forward_hook(lambda *given: captured.update(before=given[-1])),
    ]
    model.base_model.set_adapter(names)
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    after = captured["after"]
    return after - captured["before"][:, : after.shape[1]]


@pytest.mark.parametrize(
    "backbone, inputs", [("ast", make_inputs("ast")), ("wav2vec2", make_padded_inputs("wav2vec2")[0])]
)
@pytest.mark.parametrize("second", BESIDE_LAYERS)
def test_active_adapters_add_up(backbone, inputs, second):
    model = with_two(backbone, "side_network", second, layers_to_transform=[0, 1])
    alone = [added_by(model, inputs, [name]) for name in ("default", "second")]
    together = added_by(model, inputs, ["default", "second"])
    tokens = together.shape[1]
    torch.testing.assert_close(together, alone[0][:, :tokens] + alone[1][:, :tokens], atol=1e-4, rtol=1e-4)
    assert all(part.abs().max() > 1e-2 for part in alone)


@pytest.mark.parametrize("backbone", ["ast", "wav2vec2", "whisper"])
@pytest.mark.parametrize("second", BESIDE_LAYERS)
def test_every_sample_of_a_mixed_batch_has_its_own_network(backbone, second):
    model, inputs = with_two(backbone, "side_conv", second, layers_to_transform=[0, 1]), make_inputs(backbone, 4)
    names = ["second", "default", "__base__", "default"]
    mixed = logits(model, inputs, adapter_names=names)
    for index, name in enumerate(names):
        clip = {key: value[index : index + 1] for key, value in inputs.items()}
        with torch.no_grad():
            if name == "__base__":
                with model.disable_adapter():
                    expected = model(**clip).logits
            else:
                model.set_adapter(name)
                expected = model(**clip).logits
        torch.testing.assert_close(mixed[index : index + 1], expected, atol=1e-5, rtol=1e-4)


def test_a_pass_within_a_pass_and_what_follows_an_error_have_states_of_their_own():
    model, inputs, other = adapted("ast", "side_conv"), make_inputs("ast"), make_inputs("ast", 3, seed=7)
    expected, inner = logits(model, inputs), []
    busy = []

    def within(*_):
        if not busy:
            busy.append(1)
            inner.append(logits(model, other))
            busy.pop()

    handle = layers_of(model)[1].register_forward_hook(within)
    assert same(logits(model, inputs), expected)
    handle.remove()
    assert same(inner[0], logits(model, other))

    def stop(*_):
        raise KeyboardInterrupt

    handle = layers_of(model)[1].register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        logits(model, other)
    handle.remove()
    assert same(logits(model, inputs), expected)
    assert same(logits(copy.deepcopy(model), inputs), expected)

"""Every method on every backbone: start, gradients, switching off, taking off, files, hidden states, padding."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.utils.other import ModulesToSaveWrapper
from tiny import (
    BACKBONES,
    BESIDE_LAYERS,
    CHANGED_AT_START,
    METHODS,
    NOT_IN_LAYERS,
    NUM_LAYERS,
    WITH_PADDING,
    count_hooks,
    each_backbone,
    each_method,
    make_inputs,
    make_padded_inputs,
    randomize,
    same,
    trainable,
)
from torch import nn

from peft_audio.backbones.table import resolve
from peft_audio.tuner.encoder_layer import EncoderTunerLayer
from peft_audio.tuner.tuner_layer import HookedTunerLayer


pytestmark = [each_backbone, each_method]
LABELS = torch.tensor([0, 3])
# Backbones whose own convolutions or pooling let padding through; for these nothing can be promised.
LEAK_PADDING = ("data2vec-audio", "sew", "sew-d", "wav2vec2-conformer-relative", "wav2vec2-conformer-rotary")


def adapted(backbone, method, **options):
    return get_peft_model(BACKBONES[backbone](), METHODS[method](**options)).eval()


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def hidden_states(model, inputs):
    with torch.no_grad():
        return model(**inputs, output_hidden_states=True).hidden_states


def test_start(backbone, method):
    inputs = make_inputs(backbone)
    base, start = logits(BACKBONES[backbone](), inputs), logits(adapted(backbone, method), inputs)
    assert same(start, base) == (method not in CHANGED_AT_START)
    random = logits(adapted(backbone, method, init_weights=False), inputs)
    assert torch.allclose(random, base, atol=1e-5) == (method == "linear_probe")


def test_two_steps_train_the_adapter_and_the_head_and_nothing_else(backbone, method):
    model = adapted(backbone, method).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = trainable(model)
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2)
    received = set()
    for _ in range(2):
        optimizer.zero_grad()
        model(**make_inputs(backbone), labels=LABELS).loss.backward()
        received |= {name for name, p in parameters.items() if p.grad is not None and p.grad.abs().max() > 0}
        assert not [name for name, p in model.named_parameters() if p.grad is not None and not p.requires_grad]
        optimizer.step()
    # No parameter of any method is out of reach, and each one that trains is the adapter's or the head's.
    assert received == set(parameters)
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    statistics = {name for name in changed if name.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert changed - statistics == set(parameters)
    heads = {name for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)}
    own = [name for name in changed if not any(name.startswith(head) for head in heads)]
    assert heads and all(model.base_model.prefix in name for name in own)
    assert bool(own) == (method != "linear_probe")


def test_disabling_gives_the_base_model_exactly(backbone, method):
    inputs = make_inputs(backbone)
    base = logits(BACKBONES[backbone](), inputs)
    model = randomize(adapted(backbone, method))
    changed = logits(model, inputs)
    with model.disable_adapter():
        assert same(logits(model, inputs), base)
    assert same(logits(model, inputs), changed)
    assert not same(changed, base)


def test_unload_gives_back_the_base_model_with_the_trained_head(backbone, method):
    base, inputs = BACKBONES[backbone](), make_inputs(backbone)
    states = hidden_states(base, inputs)  # transformers adds hooks of its own
    keys, hooks, weights = set(base.state_dict()), count_hooks(base), copy.deepcopy(base.state_dict())
    types = [type(module) for module in base.modules()]
    model = randomize(get_peft_model(base, METHODS[method]())).train()
    model(**inputs)
    prefix, wrapper = "base_model.model.", ".modules_to_save.default"
    head = {name.removeprefix(prefix).replace(wrapper, "") for name in trainable(model) if wrapper in name}
    unloaded = model.unload().eval()
    assert set(unloaded.state_dict()) == keys
    assert count_hooks(unloaded) == hooks
    assert [type(module) for module in unloaded.modules()] == types
    changed = {name for name, value in unloaded.state_dict().items() if not torch.equal(value, weights[name])}
    assert head and changed == head
    assert all(same(a, b) for a, b in zip(hidden_states(unloaded, inputs), states))


def test_hidden_states_have_the_base_models_lengths(backbone, method):
    inputs = make_inputs(backbone)
    base = hidden_states(BACKBONES[backbone](), inputs)
    states = hidden_states(randomize(adapted(backbone, method)), inputs)
    assert [state.shape for state in states] == [state.shape for state in base]


@pytest.mark.parametrize("layers", [1, [0, -1]])
def test_layers_to_transform(backbone, method, layers):
    if method in NOT_IN_LAYERS:
        pytest.skip("adapts no encoder layer")
    model = randomize(adapted(backbone, method, layers_to_transform=layers))
    base, inputs = BACKBONES[backbone](), make_inputs(backbone)
    names = resolve(base).layer_names
    tuned = {index for index, name in enumerate(names) if _is_tuned(model.get_submodule(f"base_model.model.{name}"))}
    chosen = {1} if layers == 1 else {0, NUM_LAYERS - 1}
    assert tuned == (chosen | {NUM_LAYERS - 1} if method in BESIDE_LAYERS else chosen)
    # Layers below the first one that is changed see what they see in the base model, exactly.
    states, plain = hidden_states(model, inputs), hidden_states(base, inputs)
    first = NUM_LAYERS - 1 if method in BESIDE_LAYERS else min(tuned)
    assert all(same(a, b) for a, b in zip(states[: first + 1], plain[: first + 1]))
    if method in BESIDE_LAYERS:  # transformers may take the last state from within the layer
        assert not same(logits(model, inputs), logits(base, inputs))
    else:
        assert not same(states[first + 1], plain[first + 1])


def _is_tuned(module):
    return isinstance(module, EncoderTunerLayer)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_clip_in_a_padded_batch_has_the_logits_it_has_alone(backbone, method, implementation):
    if backbone not in WITH_PADDING:
        pytest.skip("takes no padding mask")
    if implementation == "sdpa" and backbone.startswith(("sew-d", "wavlm")):
        pytest.skip("has one attention implementation")
    model = BACKBONES[backbone](attn_implementation=implementation)
    batch, alone = make_padded_inputs(backbone)
    if backbone in LEAK_PADDING:
        assert (logits(model, batch)[1] - logits(model, alone[1])[0]).abs().max() > 1e-3
        pytest.skip("the base model itself lets padding through")
    model = randomize(get_peft_model(model, METHODS[method]())).eval()
    together = logits(model, batch)
    for index, clip in enumerate(alone):
        torch.testing.assert_close(together[index : index + 1], logits(model, clip), atol=1e-4, rtol=1e-4)


def test_attention_implementations_agree(backbone, method):
    if backbone.startswith(("sew-d", "wavlm")):
        pytest.skip("has one attention implementation")
    outputs = []
    for implementation in ("eager", "sdpa"):
        model = get_peft_model(BACKBONES[backbone](attn_implementation=implementation), METHODS[method]())
        outputs.append(logits(randomize(model).eval(), make_inputs(backbone)))
    torch.testing.assert_close(*outputs, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(backbone, method, use_reentrant):
    def trained(checkpointing):
        torch.manual_seed(0)
        model = randomize(get_peft_model(BACKBONES[backbone](), METHODS[method]())).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
        model(**make_inputs(backbone), labels=LABELS).loss.backward()
        return model

    expected, actual = trained(False), trained(True)
    gradients = {name: parameter.grad for name, parameter in trainable(actual).items()}
    for name, parameter in trainable(expected).items():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=2e-6, rtol=2e-5, msg=name)
    # A layer that is run twice counts its statistics once.
    for name, value in expected.named_buffers():
        torch.testing.assert_close(actual.get_buffer(name), value, atol=1e-6, rtol=1e-5, msg=name)


def test_reloading_gives_the_same_logits(backbone, method, tmp_path):
    model, inputs = randomize(adapted(backbone, method)).train(), make_inputs(backbone)
    with torch.no_grad():
        model(**inputs)  # statistics of the adapter's own batch norms move
    expected = logits(model.eval(), inputs)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(BACKBONES[backbone](), tmp_path)
    assert same(logits(again, inputs), expected)


def test_bare_encoder_as_feature_extractor(backbone, method):
    inputs = make_inputs(backbone)
    encoder = BACKBONES[backbone](bare=True)
    with torch.no_grad():
        base = encoder(**inputs).last_hidden_state
        model = get_peft_model(encoder, METHODS[method](init_weights=False)).eval()
        output = model(**inputs).last_hidden_state
    assert output.shape == base.shape
    assert torch.allclose(output, base, atol=1e-4) == (method == "linear_probe")
    assert model.peft_config["default"].modules_to_save == []


def test_a_copy_stands_on_its_own(backbone, method):
    model, inputs = randomize(adapted(backbone, method)), make_inputs(backbone)
    twin = copy.deepcopy(model)
    expected = logits(model, inputs)
    randomize(twin, seed=3)
    assert not same(logits(twin, inputs), expected)
    assert same(logits(model, inputs), expected)
    unloaded = twin.unload()
    assert not any(isinstance(module, (HookedTunerLayer, ModulesToSaveWrapper)) for module in unloaded.modules())
    assert same(logits(model, inputs), expected)


def test_frozen_front_end_runs_no_backward_pass(backbone, method):
    model = adapted(backbone, method).train()
    front_end = resolve(model.get_base_model()).feature_encoder
    if front_end is None:
        pytest.skip("no convolutional feature encoder")
    outputs = []
    front_end.register_forward_hook(lambda module, args, output: outputs.append(output))
    model(**make_inputs(backbone), labels=LABELS).loss.backward()
    assert outputs[0].requires_grad == (method == "input_prompt")
    assert not any(isinstance(module, nn.BatchNorm1d) and module.training for module in _frozen(model))


def _frozen(model):
    return [m for m in model.modules() if not any(p.requires_grad for p in m.parameters())]

"""What every method does on every backbone: start, gradients, switching off, taking off, hidden states, masks."""

import copy

import pytest
import torch
from peft import get_peft_model
from peft.utils.other import ModulesToSaveWrapper
from tiny import (
    BACKBONES,
    BARE_CLASSES,
    IDENTITY_AT_START,
    METHODS,
    NUM_LABELS,
    NUM_LAYERS,
    count_hooks,
    each_backbone,
    each_method,
    make_ast,
    make_inputs,
    make_wav2vec2,
    randomize,
    trainable,
)

from peft_audio import EmbeddingPromptConfig, IPETConfig, ParallelMLPAdapterConfig
from peft_audio.layer import PARTS, EncoderTunerLayer
from peft_audio.masks import grow_mask as _grow_mask


LABELS = torch.tensor([0, 3])


def adapted(backbone, method, **options):
    return get_peft_model(BACKBONES[backbone](), METHODS[method](**options)).eval()


def logits(model, backbone, **inputs):
    with torch.no_grad():
        return model(**(inputs or make_inputs(backbone))).logits


@each_backbone
@each_method
def test_start(backbone, method):
    base = logits(BACKBONES[backbone](), backbone)
    model = adapted(backbone, method)
    if method in IDENTITY_AT_START:
        assert torch.equal(logits(model, backbone), base)
    else:
        assert not torch.equal(logits(model, backbone), base)


@each_backbone
def test_ipet_starts_as_its_prompts_alone(backbone):
    model = get_peft_model(BACKBONES[backbone](), IPETConfig(num_virtual_tokens=3)).eval()
    prompts = get_peft_model(BACKBONES[backbone](), EmbeddingPromptConfig(num_virtual_tokens=3)).eval()
    own = {name: value for name, value in trainable(model).items() if "prompt" in name}
    for (_, source), (_, target) in zip(own.items(), trainable(prompts).items()):
        target.data.copy_(source.data)
    assert torch.equal(logits(model, backbone), logits(prompts, backbone))


@each_backbone
@each_method
def test_init_weights_false_changes_the_output(backbone, method):
    base = logits(BACKBONES[backbone](), backbone)
    assert not torch.allclose(logits(adapted(backbone, method, init_weights=False), backbone), base, atol=1e-4)


@each_backbone
@each_method
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
    assert received == set(parameters)
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(parameters)
    heads = {name for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)}
    assert all(any(name.startswith(head) for head in heads) or model.base_model.prefix in name for name in parameters)


@each_backbone
@each_method
def test_disabling_gives_the_base_model_exactly(backbone, method):
    base = logits(BACKBONES[backbone](), backbone)
    model = randomize(adapted(backbone, method))
    changed = logits(model, backbone)
    with model.disable_adapter():
        assert torch.equal(logits(model, backbone), base)
    assert torch.equal(logits(model, backbone), changed)
    assert not torch.equal(changed, base)


@each_backbone
@each_method
def test_unload_gives_back_the_base_model_with_the_trained_head(backbone, method):
    base = BACKBONES[backbone]()
    logits(base, backbone, **make_inputs(backbone), output_hidden_states=True)  # transformers adds hooks of its own
    keys, hooks, weights = set(base.state_dict()), count_hooks(base), copy.deepcopy(base.state_dict())
    model = randomize(get_peft_model(base, METHODS[method]()))
    prefix, wrapper = "base_model.model.", ".modules_to_save.default"
    head = {name.removeprefix(prefix).replace(wrapper, "") for name in trainable(model) if wrapper in name}
    unloaded = model.unload()
    assert set(unloaded.state_dict()) == keys
    assert count_hooks(unloaded) == hooks
    assert not any(isinstance(module, (EncoderTunerLayer, ModulesToSaveWrapper)) for module in unloaded.modules())
    changed = {name for name, value in unloaded.state_dict().items() if not torch.equal(value, weights[name])}
    assert head and changed == head


@each_backbone
@each_method
def test_hidden_states_have_the_base_models_lengths(backbone, method):
    inputs = make_inputs(backbone)
    base = BACKBONES[backbone]()(**inputs, output_hidden_states=True).hidden_states
    states = randomize(adapted(backbone, method))(**inputs, output_hidden_states=True).hidden_states
    assert [state.shape for state in states] == [state.shape for state in base]


@each_backbone
@each_method
@pytest.mark.parametrize("layers, expected", [(1, {1}), (-1, {NUM_LAYERS - 1}), ([0, -1], {0, 2}), ([], set())])
def test_layers_to_transform(backbone, method, layers, expected):
    model = adapted(backbone, method, layers_to_transform=layers)
    base = BACKBONES[backbone]()
    wrapped = [
        isinstance(model.get_submodule(f"base_model.model.{name}"), EncoderTunerLayer) for name in _layers(base)
    ]
    assert {index for index, is_wrapped in enumerate(wrapped) if is_wrapped} == expected
    # Layers below the first adapted one see what they see in the base model, exactly.
    inputs = make_inputs(backbone)
    states = randomize(model)(**inputs, output_hidden_states=True).hidden_states
    plain = base(**inputs, output_hidden_states=True).hidden_states
    first = min(expected, default=NUM_LAYERS)
    assert all(torch.equal(a, b) for a, b in zip(states[: first + 1], plain[: first + 1]))
    assert expected == set() or not torch.equal(states[first + 1], plain[first + 1])


def _layers(model):
    path = "audio_spectrogram_transformer.layers" if hasattr(model, "audio_spectrogram_transformer") else None
    path = path or "wav2vec2.encoder.layers"
    return [f"{path}.{index}" for index in range(NUM_LAYERS)]


@each_backbone
@each_method
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_clip_in_a_padded_batch_has_the_logits_it_has_alone(backbone, method, implementation):
    if backbone == "ast":
        pytest.skip("AST pads spectrograms to one length and takes no padding mask")
    model = randomize(get_peft_model(BACKBONES[backbone](attn_implementation=implementation), METHODS[method]()))
    model.eval()
    clips = [torch.randn(800), torch.randn(500)]
    batch = torch.stack([clips[0], torch.nn.functional.pad(clips[1], (0, 300))])
    mask = torch.ones(2, 800, dtype=torch.long)
    mask[1, 500:] = 0
    together = logits(model, backbone, input_values=batch, attention_mask=mask)
    for index, clip in enumerate(clips):
        ones = torch.ones(1, len(clip), dtype=torch.long)
        alone = logits(model, backbone, input_values=clip[None], attention_mask=ones)
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-4, rtol=1e-4)


@each_backbone
@each_method
def test_attention_implementations_agree(backbone, method):
    outputs = []
    for implementation in ("eager", "sdpa"):
        model = get_peft_model(BACKBONES[backbone](attn_implementation=implementation), METHODS[method]())
        outputs.append(logits(randomize(model).eval(), backbone))
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)


@each_backbone
@each_method
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_gradient_checkpointing_changes_no_gradient(backbone, method, use_reentrant, before):
    def gradients(checkpointing):
        torch.manual_seed(0)
        model = BACKBONES[backbone]()
        enable = {"gradient_checkpointing_kwargs": {"use_reentrant": use_reentrant}}
        if checkpointing and before:
            model.gradient_checkpointing_enable(**enable)
        model = randomize(get_peft_model(model, METHODS[method]())).train()
        if checkpointing and not before:
            model.gradient_checkpointing_enable(**enable)
        model(**make_inputs(backbone), labels=LABELS).loss.backward()
        return {name: parameter.grad for name, parameter in trainable(model).items()}

    expected, actual = gradients(False), gradients(True)
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


@each_backbone
@each_method
def test_a_copy_stands_on_its_own(backbone, method):
    model = randomize(adapted(backbone, method))
    twin = copy.deepcopy(model)
    expected = logits(model, backbone)
    randomize(twin, seed=3)
    changed = logits(twin, backbone)
    assert torch.equal(logits(model, backbone), expected) and not torch.equal(changed, expected)
    twin.unload()
    assert torch.equal(logits(model, backbone), expected)


@each_backbone
@each_method
def test_bare_encoder_as_feature_extractor(backbone, method):
    encoder = BACKBONES[backbone](BARE_CLASSES[backbone])
    base = encoder(**make_inputs(backbone)).last_hidden_state
    model = get_peft_model(encoder, METHODS[method](init_weights=False)).eval()
    output = model(**make_inputs(backbone)).last_hidden_state
    assert output.shape == base.shape and not torch.allclose(output, base, atol=1e-4)
    assert model.peft_config["default"].modules_to_save == []


@each_method
def test_autocast_and_low_precision_base(method):
    model = randomize(get_peft_model(make_ast().to(torch.bfloat16), METHODS[method]()))
    layer = next(module for module in model.modules() if isinstance(module, EncoderTunerLayer))
    own = [p for part in PARTS for p in getattr(layer, layer.prefix + part).parameters()]
    assert {parameter.dtype for parameter in own} == {torch.float32}
    output = model(input_values=make_inputs("ast")["input_values"].to(torch.bfloat16), labels=LABELS)
    assert output.logits.dtype == torch.bfloat16
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in own)
    full = randomize(adapted("ast", method))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = logits(full, "ast")
    torch.testing.assert_close(mixed.float(), logits(full, "ast"), atol=0.2, rtol=0.1)


def test_dropout_acts_in_training_only():
    model = randomize(get_peft_model(make_ast(), IPETConfig(dropout=0.5, prompt_dropout=0.5))).train()
    inputs = make_inputs("ast")
    assert not torch.equal(model(**inputs).logits, model(**inputs).logits)
    # Every sample has its own: the same clip twice in a batch gives two answers.
    twice = {"input_values": inputs["input_values"][:1].repeat(2, 1, 1)}
    prompts = randomize(get_peft_model(make_ast(), EmbeddingPromptConfig(prompt_dropout=0.5))).train()
    output = prompts(**twice).logits
    assert not torch.allclose(output[0], output[1], atol=1e-4)
    assert torch.equal(model.eval()(**inputs).logits, model(**inputs).logits)


@each_backbone
def test_frozen_front_end_runs_no_backward_pass(backbone):
    model = adapted(backbone, "ipet").train()
    trunk = model.get_base_model().base_model
    if not hasattr(trunk, "feature_extractor"):
        pytest.skip("no convolutional front end")
    outputs = []
    trunk.feature_extractor.register_forward_hook(lambda module, args, output: outputs.append(output))
    model(**make_inputs(backbone), labels=LABELS).loss.backward()
    assert not outputs[0].requires_grad


def test_a_trained_front_end_is_left_alone():
    config = ParallelMLPAdapterConfig(modules_to_save=["classifier", "feature_extractor"])
    model = get_peft_model(make_wav2vec2(), config).train()
    model(**make_inputs("wav2vec2"), labels=LABELS).loss.backward()
    gradients = {name: parameter.grad for name, parameter in trainable(model).items()}
    assert any("feature_extractor" in name for name in gradients)
    assert all(gradient is not None for gradient in gradients.values())


def test_a_configuration_serves_several_models():
    config = IPETConfig()
    first = get_peft_model(make_ast(), config)
    second = get_peft_model(make_wav2vec2(num_labels=3), config)
    assert first.peft_config["default"].modules_to_save == ["classifier"]
    assert second.peft_config["default"].modules_to_save == ["projector", "classifier"]
    assert config.modules_to_save is None and config.base_settings is None
    assert len(first.peft_config["default"].base_settings["id2label"]) == NUM_LABELS


def test_active_adapters_add_up():
    model = get_peft_model(make_ast(), ParallelMLPAdapterConfig(init_weights=False, modules_to_save=[])).eval()
    model.add_adapter("second", ParallelMLPAdapterConfig(init_weights=False, modules_to_save=[]))
    layer = next(module for module in model.modules() if isinstance(module, EncoderTunerLayer))
    tokens, outputs = torch.randn(1, 5, 32), {}
    for names in ("default", "second", ["default", "second"]):
        model.base_model.set_adapter(names)
        with torch.no_grad():
            outputs[str(names)] = layer(tokens)
    layer.enable_adapters(False)
    plain = layer(tokens)
    both = outputs["['default', 'second']"] - plain
    torch.testing.assert_close(both, outputs["default"] + outputs["second"] - 2 * plain, atol=1e-5, rtol=1e-5)


def test_second_adapter_and_deletion():
    model = randomize(adapted("wav2vec2", "ipet"))
    first = logits(model, "wav2vec2")
    model.add_adapter("second", METHODS["ipet"](layers_to_transform=[1], init_weights=False))
    assert torch.equal(logits(model, "wav2vec2"), first)
    model.set_adapter("second")
    second = logits(model, "wav2vec2")
    assert not torch.equal(second, first)
    model.set_adapter("default")
    assert torch.equal(logits(model, "wav2vec2"), first)
    model.delete_adapter("second")
    assert torch.equal(logits(model, "wav2vec2"), first)


def test_merging_and_mixed_batches_are_refused_with_the_reason():
    model = adapted("ast", "ipet")
    with pytest.raises(ValueError, match="cannot be merged"):
        model.merge_and_unload()
    with pytest.raises(ValueError, match="cannot be merged"):
        model.merge_adapter()
    with pytest.raises(ValueError, match="adapter_names"):
        model(**make_inputs("ast"), adapter_names=["default", "__base__"])


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_masks_grow_by_columns_that_everyone_attends_to(dtype):
    mask = torch.zeros(1, 1, 2, 2, dtype=dtype)
    grown = _grow_mask(mask, 1, grow_queries=True)
    attends = 1 if dtype == torch.bool else 0
    assert grown.shape == (1, 1, 3, 3) and grown.dtype == dtype
    assert (grown[..., 0] == attends).all() and (grown[..., 0, :] == attends).all()
    assert _grow_mask(mask, 1, grow_queries=False).shape == (1, 1, 2, 3)
    padding = _grow_mask(torch.tensor([[1, 0]]), 2, grow_queries=True)
    assert padding.tolist() == [[1, 1, 1, 0]]
    with pytest.raises(ValueError, match="attn_implementation"):
        _grow_mask(torch.zeros(1, 2, 2), 1, grow_queries=False)

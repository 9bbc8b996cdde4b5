"""The encoders outside of transformers' audio classifiers, alone and in the models around them."""

import copy

import pytest
import torch
import transformers
from encoders import ENCODERS, each_encoder
from peft import PeftModel, get_peft_model
from tiny import BESIDE_LAYERS, CHANGED_AT_START, METHODS, count_hooks, randomize, same, trainable

import peft_audio
from peft_audio import EmbeddingPromptConfig, ParallelMLPAdapterConfig
from peft_audio.backbones.rows import UNSUPPORTED
from peft_audio.backbones.table import BACKBONES, resolve
from peft_audio.tuner.made_up_inputs import Runnable
from peft_audio.tuner.row_check import RowCheck


NUM_PROMPTS = 3
# One of each part that an adapter can have.
each_method = pytest.mark.parametrize(
    "method", ["joint", "time_freq_conv", "bottleneck_sequential", "conformer", "side_attention", "input_prompt"]
)
MIXING = ["time_freq_conv", "conformer", "side_conv", "side_attention"]
HIDE_PADDING = [name for name, encoder in ENCODERS.items() if encoder.hides_padding]


def skip_what_is_refused(encoder, method):
    spec = resolve(encoder.make()).spec
    if method == "input_prompt" and spec.input is None:
        pytest.skip("no input prompts: the model's input does not enter one module of this form")
    if method in CHANGED_AT_START and spec.block_attention:
        pytest.skip("no prompts: attention in blocks")


def adapted(encoder, method, **options):
    """A model with an adapter that is not as it started."""
    skip_what_is_refused(encoder, method)
    return randomize(get_peft_model(encoder.make(), METHODS[method](**options))).eval()


@each_encoder
def test_the_row_holds(encoder):
    encoder = ENCODERS[encoder]
    model = encoder.make()
    assert RowCheck(model, resolve(model), Runnable(encoder.encoder(model), encoder.inputs())).problems() == []


@each_encoder
@each_method
def test_an_adapter_starts_trains_and_comes_off(encoder, method, tmp_path):
    encoder = ENCODERS[encoder]
    skip_what_is_refused(encoder, method)
    base = encoder.make()
    with torch.no_grad():
        before, weights = encoder.states(base), copy.deepcopy(base.state_dict())
    hooks = count_hooks(base)
    model = get_peft_model(base, METHODS[method]()).eval()
    with torch.no_grad():
        assert same(encoder.states(model), before) == (method not in CHANGED_AT_START)
    randomize(model)
    encoder.loss(model).backward()
    own = {name: value for name, value in trainable(model).items() if model.base_model.prefix in name}
    silent = [name for name, value in own.items() if value.grad is None or not value.grad.abs().max() > 0]
    assert own and not silent
    assert not [name for name, value in model.named_parameters() if value.grad is not None and not value.requires_grad]
    with torch.no_grad():
        after = encoder.states(model)
        assert after.shape == before.shape and not torch.allclose(after, before, atol=1e-4)
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(encoder.make(), tmp_path).eval()
        torch.testing.assert_close(encoder.states(again), after)
        with model.disable_adapter():
            torch.testing.assert_close(encoder.states(model), before)
        unloaded = model.unload()
        torch.testing.assert_close(encoder.states(unloaded), before)
    assert count_hooks(unloaded) == hooks and set(unloaded.state_dict()) == set(weights)


@each_encoder
@pytest.mark.parametrize("method", ["joint", "conformer"])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(encoder, method, use_reentrant):
    encoder = ENCODERS[encoder]
    gradients = []
    for is_checkpointed in (False, True):
        model = adapted(encoder, method)
        if is_checkpointed:
            if not encoder.encoder(model).supports_gradient_checkpointing:
                pytest.skip("the base model has no gradient checkpointing")
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model.train()
        torch.manual_seed(0)
        encoder.loss(model).backward()
        gradients.append({name: parameter.grad for name, parameter in trainable(model).items()})
    largest = max(gradient.abs().max().item() for gradient in gradients[0].values())
    torch.testing.assert_close(*gradients, atol=1e-4 * largest, rtol=1e-3)


@each_encoder
@pytest.mark.parametrize("method", ["aat_ms", "time_freq_conv"])
def test_mixed_batches(encoder, method):
    encoder, names = ENCODERS[encoder], ["second", "first"]
    if encoder.name == "hidden_states":
        pytest.skip("the model around this encoder is not run here")
    model = randomize(get_peft_model(encoder.make(), METHODS[method](), "first"))
    model.add_adapter("second", METHODS[method]())
    model.set_adapter("second")
    randomize(model, seed=5).eval()
    expected, inputs = {}, {**encoder.inputs(), **(encoder.whole or {})}
    with torch.no_grad():
        for name in names:
            model.set_adapter(name)
            expected[name] = first_output(model(**inputs))
        mixed = first_output(model(**inputs, adapter_names=names))
    assert not torch.allclose(expected["first"], expected["second"], atol=1e-3)
    for row, name in enumerate(names):
        torch.testing.assert_close(mixed[row], expected[name][row], atol=1e-4, rtol=1e-4)


def first_output(outputs):
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state


# ---- padding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", HIDE_PADDING)
@pytest.mark.parametrize("method", ["joint", *MIXING])
@torch.no_grad()
def test_a_padded_clip_gives_what_it_gives_alone(encoder, method):
    encoder = ENCODERS[encoder]
    clips, length = encoder.inputs()[encoder.name], encoder.shape[0]
    assert resolve(encoder.make()).spec.hides_padding
    mask = torch.ones(2, length, dtype=torch.long)
    short = int(0.625 * length)
    clips[1, short:], mask[1, short:] = 0, 0
    for model in (encoder.make(), adapted(encoder, method)):
        padded = encoder.states(model, {encoder.name: clips, encoder.mask: mask})[1]
        alone = encoder.states(model, {encoder.name: clips[1:, :short], encoder.mask: mask[1:, :short]})[0]
        torch.testing.assert_close(padded[: len(alone)], alone, atol=2e-4, rtol=1e-3)


# ---- prompts stand in front of the tokens ----------------------------------------------------------------------------


@torch.no_grad()
def outputs_of_layers(encoder, model, inputs=None):
    layers = [model.get_submodule(name) for name in resolve(model).layer_names]
    calls, outputs = [], []
    for layer in layers:
        layer.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
        layer.register_forward_hook(lambda _, args, output: outputs.append(first(output)))
    encoder.states(model, inputs)
    return layers, calls, outputs


def first(output):
    return output[0] if isinstance(output, tuple) else output


def grown(name, value, tokens, part):
    """An argument of an encoder layer for the tokens with prompts in front, from what the model makes for as many tokens."""
    if name == "position_bias":
        return part.wrapped_encoder.embed_positions(tokens)
    if name == "relative_position_embeddings":
        return part.encoder.embed_positions(tokens)
    if name == "position_embeddings" and hasattr(part, "rotary_emb"):
        return part.rotary_emb(tokens, torch.arange(tokens.shape[1])[None])  # from 0 on: distances alone count
    if name == "position_embeddings" and hasattr(part, "encode_positions"):
        return part.encode_positions(tokens)
    return value


LAYER_WIDE = [
    "qwen2_audio",
    "voxtral",
    "audioflamingo3",
    "speech_to_text",
    "speecht5",
    "moonshine",
    "moonshine_streaming",
]
LAYER_WIDE += ["nemotron3_diarization", "dinov2", "dinov2_with_registers", "dinov3_vit"]
# The norm in front of attention, and the argument for positions.
WITHIN_LAYERS = {
    "parakeet_ctc": ("norm_self_att", "position_embeddings"),
    "lasr_ctc": ("norm_self_att", "position_embeddings"),
    "seamless_m4t": ("self_attn_layer_norm", "relative_position_embeddings"),
    "seamless_m4t_v2": ("self_attn_layer_norm", None),
}


def prompted(encoder):
    config = EmbeddingPromptConfig(num_virtual_tokens=NUM_PROMPTS)
    return randomize(get_peft_model(encoder.make(), config), std=1.0).eval()


@pytest.mark.parametrize("encoder", LAYER_WIDE)
@torch.no_grad()
def test_prompts_are_tokens_in_front_of_the_layer(encoder):
    encoder = ENCODERS[encoder]
    tuned, _, outputs = outputs_of_layers(encoder, prompted(encoder).get_base_model())
    base = encoder.make()
    layers, calls, _ = outputs_of_layers(encoder, base)
    args, kwargs = calls[0]
    states = args[0] if args else kwargs["hidden_states"]
    for layer, tuned_layer, output in zip(layers, tuned, outputs):
        prompt = tuned_layer.part("prompt")["default"].embeddings
        tokens = torch.cat([prompt.expand(len(states), -1, -1), states], dim=1)
        rest = [value for value in args[1:] if value is None]  # a mask would need prompts, too
        assert len(rest) == len(args[1:]) if args else True
        named = {
            name: grown(name, value, tokens, encoder.encoder(base))
            for name, value in kwargs.items()
            if name != "hidden_states" and (name != "attention_mask" or value is None)
        }
        states = first(layer.forward(tokens, *rest, **named))
        states = states[:, NUM_PROMPTS:]
        torch.testing.assert_close(output, states, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("encoder", WITHIN_LAYERS)
@torch.no_grad()
def test_prompts_are_tokens_in_front_of_attention_in_conformer_layers(encoder):
    """These layers do more than attention in front of it. What attention gives is compared, with the norm in front of it."""
    (norm, argument), encoder = WITHIN_LAYERS[encoder], ENCODERS[encoder]
    model = prompted(encoder)
    layers = [model.get_base_model().get_submodule(name) for name in resolve(model.get_base_model()).layer_names]
    seen, masks = [], []
    for layer in layers:
        inner = layer.get_base_layer()
        getattr(inner, norm).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        inner.self_attn.register_forward_pre_hook(
            lambda _, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
        )
        inner.self_attn.register_forward_hook(lambda _, args, output: seen.append(output[0]))
    encoder.states(model)
    base = encoder.make()
    plain = [base.get_submodule(name) for name in resolve(base).layer_names]
    for layer, tuned, states, output, mask in zip(plain, layers, seen[::2], seen[1::2], masks):
        prompt = tuned.part("prompt")["default"].embeddings
        tokens = getattr(layer, norm)(torch.cat([prompt.expand(len(states), -1, -1), states], dim=1))
        named = {} if argument is None else {argument: grown(argument, None, tokens, encoder.encoder(base))}
        if mask is not None:  # of chunks: prompts are read by all
            assert mask.shape[-1] == tokens.shape[1] and mask[..., :NUM_PROMPTS].all()
        expected = layer.self_attn(tokens, attention_mask=mask, **named)[0][:, NUM_PROMPTS:]
        torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-4)


# ---- what is refused, and what is found ------------------------------------------------------------------------------


def test_prompts_are_refused_where_attention_reads_blocks():
    encoder = ENCODERS["granite_speech"]
    model = encoder.make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="without prompts on granite_speech.*blocks.*EmbeddingPromptConfig"):
        get_peft_model(model, EmbeddingPromptConfig())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert get_peft_model(model, ParallelMLPAdapterConfig())


@pytest.mark.parametrize("model_type", UNSUPPORTED)
def test_types_that_cannot_be_supported_say_why(model_type):
    assert model_type in transformers.CONFIG_MAPPING or "thinker" in model_type or "encoder" in model_type
    model = torch.nn.Linear(2, 2)
    model.config = transformers.PretrainedConfig()
    model.config.model_type = model_type
    with pytest.raises(
        ValueError, match=f"'{model_type}', which adapters cannot be put on: its encoder .*Supported: "
    ):
        get_peft_model(model, ParallelMLPAdapterConfig())


@each_encoder
def test_the_encoder_alone_has_the_places_that_it_has_within_the_model(encoder):
    encoder = ENCODERS[encoder]
    model = encoder.make()
    alone = encoder.encoder(model)
    if alone.config.model_type not in BACKBONES:
        pytest.skip("the encoder alone is no model of its own")
    whole, part = resolve(model), resolve(alone)
    assert [name.removeprefix(f"{encoder.part}.") for name in whole.layer_names] == list(part.layer_names)
    assert (whole.hidden_size, whole.input_shape) == (part.hidden_size, part.input_shape)


def test_layers_are_left_out_by_no_type():
    """Layerdrop of the encoder, whatever its configuration calls it."""
    for name, field in (("seamless_m4t", "speech_encoder_layerdrop"), ("speech_to_text", "encoder_layerdrop")):
        encoder = ENCODERS[name]
        model = encoder._replace(config={**encoder.config, field: 0.5}).make()
        tuned = get_peft_model(model, ParallelMLPAdapterConfig())
        assert getattr(model.config, field) == 0.0
        assert getattr(tuned.unload().config, field) == 0.5


@pytest.mark.parametrize("method", BESIDE_LAYERS)
def test_a_side_network_reads_what_a_layer_gave_before_it_was_changed_in_place(method):
    """Granite's encoder adds to the output of its middle layer in place."""
    encoder = ENCODERS["granite_speech"]
    model = adapted(encoder, method)
    encoder.loss(model).backward()
    assert all(parameter.grad is not None for parameter in trainable(model).values())


# ---- files -----------------------------------------------------------------------------------------------------------

AUTO = {"parakeet_ctc": peft_audio.AutoPeftModelForCTC, "lasr_ctc": peft_audio.AutoPeftModelForCTC}
AUTO |= {"nemotron3_diarization": peft_audio.AutoPeftModelForAudioFrameClassification}
SEQ2SEQ = [
    "speech_to_text",
    "speecht5",
    "moonshine",
    "moonshine_streaming",
    "seamless_m4t",
    "seamless_m4t_v2",
    "voxtral",
]
AUTO |= dict.fromkeys(SEQ2SEQ, peft_audio.AutoPeftModelForSpeechSeq2Seq)


@pytest.mark.parametrize("encoder", AUTO)
def test_an_adapter_loads_with_its_base_model_in_one_line(encoder, tmp_path):
    auto_class, encoder = AUTO[encoder], ENCODERS[encoder]
    encoder.make().save_pretrained(tmp_path / "base")
    base = type(encoder.make()).from_pretrained(tmp_path / "base")
    model = randomize(get_peft_model(base, METHODS["aat_ms"]())).eval()
    model.save_pretrained(tmp_path / "adapter")
    again = auto_class.from_pretrained(tmp_path / "adapter")
    inputs = {**encoder.inputs(), **(encoder.whole or {})}
    with torch.no_grad():
        torch.testing.assert_close(first_output(again(**inputs)), first_output(model(**inputs)))


SCORES = {"output_scores": True, "return_dict_in_generate": True}
GENERATE = ["speech_to_text", "speecht5", "moonshine", "moonshine_streaming", "seamless_m4t", "seamless_m4t_v2"]


@pytest.mark.parametrize("encoder", GENERATE)
@pytest.mark.parametrize("method", ["aat_ms", "time_freq_conv"])
def test_generated_text_is_that_of_each_clips_adapter(encoder, method):
    encoder = ENCODERS[encoder]
    model = get_peft_model(encoder.make(), METHODS[method](), "first")
    model.add_adapter("second", METHODS[method]())
    expected, names = {}, ["second", "first"]
    options = {"max_new_tokens": 4, "do_sample": False, **SCORES}
    for seed, name in enumerate(names):
        model.set_adapter(name)
        randomize(model, seed=seed, std=0.5).eval()
        expected[name] = torch.stack(model.generate(**encoder.inputs(), **options).scores)
    mixed = torch.stack(model.generate(**encoder.inputs(), **options, adapter_names=names).scores)
    assert not torch.allclose(expected["first"][0], expected["second"][0], atol=1e-3)
    for row, name in enumerate(names):
        torch.testing.assert_close(mixed[0, row], expected[name][0, row], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["embedding_prompt", "joint", "bottleneck_sequential"])
@pytest.mark.parametrize("stack", ["decoder", "both"])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_decoder_with_cache_gives_what_it_gives_without(method, stack, beams):
    encoder = ENCODERS["speech_to_text"]
    model = randomize(get_peft_model(encoder.make(), METHODS[method](stack=stack)), std=0.5).eval()
    options = {"max_new_tokens": 5, "do_sample": False, "num_beams": beams}
    scores = [model.generate(**encoder.inputs(), **options, use_cache=cache, **SCORES) for cache in (True, False)]
    assert torch.equal(scores[0].sequences, scores[1].sequences)
    torch.testing.assert_close(scores[0].scores, scores[1].scores, atol=1e-4, rtol=1e-4)
    with model.disable_adapter():
        base = model.generate(**encoder.inputs(), **options, **SCORES)
    assert not torch.allclose(base.scores[0], scores[0].scores[0], atol=1e-3)


def test_decoders_that_cannot_be_adapted_are_refused():
    for name in ("moonshine", "speecht5", "seamless_m4t", "voxtral"):
        with pytest.raises(ValueError, match="`stack` must be 'encoder' on this model of type"):
            get_peft_model(ENCODERS[name].make(), ParallelMLPAdapterConfig(stack="decoder"))

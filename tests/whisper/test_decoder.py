"""Adapters in Whisper's decoder: what they compute, alone and step by step, in the Trainer and in checkpoints."""

import warnings

import pytest
import torch
import torch.nn.functional as F
import transformers
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from recognizers import WAYS, check_mixed, generated, recognizer, with_two
from tiny import BACKBONES, METHODS, make_inputs, randomize, trainable

from peft_audio import AutoPeftModelForSpeechSeq2Seq, ParallelMLPAdapterConfig, cache_frozen, initialize_prompts


STACKS = ("decoder", "both")
IN_DECODER = [
    "embedding_prompt",
    "parallel_mlp",
    "parallel_mlp_residual",
    "aat_ms",
    "ipet",
    "joint",
    "bottleneck_parallel",
    "bottleneck_sequential",
]
each_method = pytest.mark.parametrize("method", IN_DECODER)
each_stack = pytest.mark.parametrize("stack", STACKS)
TOKENS = torch.tensor([[3, 7, 11, 5, 20], [3, 9, 30, 2, 8]])


def adapted(method, stack, std=0.5, **options):
    model = get_peft_model(recognizer(decoder_layers=2, **options), METHODS[method](stack=stack))
    return randomize(model, std=std).eval()


def close(first, second):
    return torch.allclose(first, second, atol=1e-4, rtol=1e-4)


def logits_of(model, tokens=TOKENS, **more):
    return model(**make_inputs("whisper"), decoder_input_ids=tokens, **more).logits


# ---- what is computed ------------------------------------------------------------------------------------------------


def split(tensor, heads):
    return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)


def attended(attention, query, keys, mask=None):
    """Attention as its equation has it, `(batch, tokens, d)` each; `mask` is True where a query reads a key."""
    heads = attention.num_heads
    q, k, v = (
        split(part, heads) for part in (attention.q_proj(query), attention.k_proj(keys), attention.v_proj(keys))
    )
    scores = q @ k.transpose(-1, -2) / attention.head_dim**0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return attention.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def restated(prompts, padding=None, adapters=(None, None), tokens=TOKENS):
    """Logits of the base model with prompts as tokens in front of each layer's, and adapters beside fc2, in plain torch."""
    base = recognizer(decoder_layers=2).model
    decoder, heard = base.decoder, base.encoder(**make_inputs("whisper")).last_hidden_state
    states = decoder.embed_tokens(tokens) + decoder.embed_positions.weight[: tokens.shape[1]]
    for layer, prompt, adapter in zip(decoder.layers, prompts, adapters):
        together = torch.cat([prompt.expand(len(tokens), -1, -1), states], dim=1)
        size, number = together.shape[1], prompt.shape[-2]
        mask = torch.ones(size, size, dtype=torch.bool).tril()
        if padding is not None:
            mask = mask & F.pad(padding.bool(), (number, 0), value=True)[:, None, None]
        normalized = layer.self_attn_layer_norm(together)
        together = together + attended(
            layer.self_attn, normalized, normalized, mask | torch.eye(size, dtype=torch.bool)
        )
        states = together[:, number:]  # what prompts give is dropped
        states = states + attended(layer.encoder_attn, layer.encoder_attn_layer_norm(states), heard)
        normalized = layer.final_layer_norm(states)
        added = 0 if adapter is None else adapter(normalized)
        states = states + layer.fc2(F.gelu(layer.fc1(normalized))) + added
    return decoder.layer_norm(states) @ decoder.embed_tokens.weight.T


def prompts_of(model):
    state = get_peft_model_state_dict(model)
    return [state[f"base_model.model.decoder.layers.{layer}.prompt.embeddings"].detach().clone() for layer in (0, 1)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_prompts_are_tokens_in_front_of_the_transcript(attention):
    model = adapted("embedding_prompt", "decoder", attn_implementation=attention)
    with torch.no_grad():
        found, expected = logits_of(model), restated(prompts_of(model))
        with model.disable_adapter():
            base = logits_of(model)
    assert close(found, expected) and not torch.allclose(found, base, atol=1e-2)
    assert close(base, logits_of(recognizer(decoder_layers=2)))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_left_padding_is_not_read(attention):
    model = adapted("embedding_prompt", "decoder", attn_implementation=attention)
    padding = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    others = TOKENS.clone()
    others[1, :2] = 33
    with torch.no_grad():
        expected = restated(prompts_of(model), padding)[padding.bool()]
        for tokens in (TOKENS, others):
            assert close(logits_of(model, tokens, decoder_attention_mask=padding)[padding.bool()], expected)


def test_adapters_are_beside_the_feed_forward_block():
    model = adapted("parallel_mlp", "decoder")
    state = get_peft_model_state_dict(model)

    def adapter(layer):
        down, up = (
            [
                state[f"base_model.model.decoder.layers.{layer}.mlp_adapter.{name}.{kind}"]
                for kind in ("weight", "bias")
            ]
            for name in ("down", "up")
        )
        return lambda states: F.linear(F.relu(F.linear(states, *down)), *up)

    none = torch.zeros(0, 32)
    with torch.no_grad():
        assert close(logits_of(model), restated([none, none], adapters=(adapter(0), adapter(1))))


def test_prompts_learn_from_the_whole_transcript():
    model = adapted("embedding_prompt", "decoder")
    prompts = [prompt.requires_grad_() for prompt in prompts_of(model)]
    restated(prompts).square().sum().backward()
    logits_of(model).square().sum().backward()
    found = [parameter.grad for name, parameter in trainable(model).items() if "embedding_prompt_prompt" in name]
    assert len(found) == 2
    for gradient, prompt in zip(found, prompts):
        assert torch.allclose(gradient, prompt.grad, rtol=1e-3, atol=1e-4 * prompt.grad.abs().max())


@each_method
@each_stack
def test_no_token_reads_a_later_one(method, stack):
    model = adapted(method, stack)
    with torch.no_grad():
        whole = logits_of(model)
        for length in range(1, TOKENS.shape[1]):
            assert close(logits_of(model, TOKENS[:, :length]), whole[:, :length])


# ---- generation ------------------------------------------------------------------------------------------------------


@each_method
@each_stack
@pytest.mark.parametrize("step", [1, 2])
def test_steps_with_a_cache_give_what_the_whole_transcript_gives(method, stack, step):
    model, cache, parts = adapted(method, stack), None, []
    with torch.no_grad():
        whole = logits_of(model)
        for tokens in TOKENS.split(step, dim=1):
            output = model(**make_inputs("whisper"), decoder_input_ids=tokens, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            parts.append(output.logits)
    assert close(torch.cat(parts, dim=1), whole)
    assert cache.get_seq_length() == TOKENS.shape[1]  # of tokens alone


@each_method
@each_stack
@pytest.mark.parametrize("way", ["greedy", "beams", "several", "sampled"])
def test_generating_with_a_cache_is_generating_without(method, stack, way):
    model, inputs = adapted(method, stack), make_inputs("whisper")
    found = generated(model, inputs, way)
    assert torch.equal(found, generated(model, inputs, way, use_cache=False))
    assert torch.equal(found, generated(model, inputs, way))


@each_method
def test_a_static_cache_gives_the_same(method):
    model, inputs = adapted(method, "both"), make_inputs("whisper")
    assert torch.equal(
        generated(model, inputs, "greedy", cache_implementation="static"), generated(model, inputs, "greedy")
    )


def two_adapters(method, stack, **second):
    return with_two(recognizer(decoder_layers=2), METHODS[method](stack=stack), 2.0, **second)


@each_method
@each_stack
@pytest.mark.parametrize("way", [way for way in WAYS if way != "sampled"])
def test_each_clip_of_a_mixed_batch_is_recognized_with_its_adapter(method, stack, way):
    check_mixed(two_adapters(method, stack), way, ["b", "a", "b", "a"])


def test_different_prompts_in_the_decoder_share_no_cache():
    model = two_adapters("embedding_prompt", "decoder", num_virtual_tokens=5)
    inputs, names = make_inputs("whisper", batch_size=2), ["b", "a"]
    with pytest.raises(ValueError, match="use_cache=False"):
        generated(model, inputs, "greedy", adapter_names=names)
    mixed = generated(model, inputs, "no cache", adapter_names=names)
    for index, name in enumerate(names):
        model.set_adapter(name)
        assert torch.equal(mixed[index], generated(model, inputs, "greedy")[index])


def test_a_batch_that_runs_in_parts_gives_no_cache_of_one_part():
    model = two_adapters("embedding_prompt", "decoder", num_virtual_tokens=5)
    output = model(**make_inputs("whisper"), decoder_input_ids=TOKENS, adapter_names=["a", "b"])
    assert output.past_key_values is None


# ---- training and checkpoints ----------------------------------------------------------------------------------------


@each_method
@each_stack
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_trains_the_adapter_and_nothing_else(method, stack, checkpointing):
    model = get_peft_model(recognizer(decoder_layers=2), METHODS[method](stack=stack))
    randomize(model)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    model(**make_inputs("whisper"), labels=TOKENS).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in trainable(model).values())
    assert all(".layers." in name for name in trainable(model))
    in_decoder = {name for name in trainable(model) if ".decoder.layers." in name}
    assert in_decoder and (stack == "both") == (len(in_decoder) < len(trainable(model)))


@each_method
@each_stack
def test_an_adapter_comes_back(method, stack, tmp_path):
    model = adapted(method, stack)
    model.save_pretrained(tmp_path)
    base = recognizer(decoder_layers=2)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    loaded = PeftModel.from_pretrained(base, tmp_path).eval()
    with torch.no_grad():
        assert close(logits_of(loaded), logits_of(model))
        with loaded.disable_adapter():
            bare = logits_of(loaded)
        assert close(bare, logits_of(recognizer(decoder_layers=2)))
        unloaded = loaded.unload()
        assert close(logits_of(unloaded), bare)
    assert all(torch.equal(tensor, before[name]) for name, tensor in unloaded.state_dict().items())


def test_one_line_loads_it(tmp_path):
    recognizer(decoder_layers=2).save_pretrained(tmp_path / "base")
    base = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "base")
    model = randomize(get_peft_model(base, METHODS["ipet"](stack="both"))).eval()
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForSpeechSeq2Seq.from_pretrained(tmp_path / "adapter")
    assert close(logits_of(loaded), logits_of(model))
    assert "- `stack`: both" in (tmp_path / "adapter" / "README.md").read_text()


@pytest.mark.parametrize("layers, stack", [([1], "decoder"), ([0, 1], "both"), ([0], "both"), ([0, 1], "decoder")])
def test_a_state_dict_says_which_layers_of_which_stack(layers, stack):
    options = {"layers_to_transform": layers, "stack": stack}
    model = randomize(get_peft_model(recognizer(decoder_layers=2), METHODS["ipet"](**options)))
    state = get_peft_model_state_dict(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        inject_adapter_in_model(METHODS["ipet"](**options), recognizer(decoder_layers=2), state_dict=state)
    config, target = METHODS["ipet"](), recognizer(decoder_layers=2)
    with pytest.warns(RuntimeWarning, match="layers_to_transform"):
        inject_adapter_in_model(config, target, state_dict=state)
    assert (config.stack, config.layers_to_transform) == (stack, layers)


def test_prompts_start_as_tokens_of_transcripts():
    model = get_peft_model(recognizer(decoder_layers=2), METHODS["ipet"](stack="both"))
    initialize_prompts(model, {**make_inputs("whisper"), "decoder_input_ids": TOKENS})
    decoder = recognizer(decoder_layers=2).model.decoder
    entering = (decoder.embed_tokens(TOKENS) + decoder.embed_positions.weight[: TOKENS.shape[1]]).flatten(0, 1)
    for row in prompts_of(model)[0].reshape(-1, entering.shape[1]):
        assert (entering - row).abs().amax(dim=1).min() < 1e-5


@pytest.mark.parametrize("given", [{}, {"labels": TOKENS}])
@pytest.mark.parametrize("is_bare", [False, True])
def test_prompts_of_the_encoder_start_as_tokens_of_clips_whatever_the_decoder_is_given(given, is_bare):
    model = recognizer(decoder_layers=2)
    model = get_peft_model(model.model if is_bare else model, METHODS["ipet"]())
    given = {} if is_bare else given  # has no loss
    before = {name: parameter.clone() for name, parameter in trainable(model).items()}
    initialize_prompts(model, {**make_inputs("whisper"), **given})
    changed = [name for name, parameter in trainable(model).items() if not torch.equal(parameter, before[name])]
    assert len(changed) == 3 and all("prompt" in name for name in changed)


# ---- what is refused -------------------------------------------------------------------------------------------------


@each_stack
@pytest.mark.parametrize("method", ["time_freq_conv", "conformer"])
def test_convolutions_are_refused(method, stack):
    model = recognizer()
    before = model.state_dict().keys()
    with pytest.raises(ValueError, match="`stack` must be 'encoder' for adapters that mix tokens"):
        get_peft_model(model, METHODS[method](stack=stack))
    assert model.state_dict().keys() == before


def test_a_model_without_decoder_is_refused():
    for backbone in ("whisper", "ast", "wav2vec2"):
        with pytest.raises(ValueError, match="which has no decoder"):
            get_peft_model(BACKBONES[backbone](), METHODS["ipet"](stack="both"))


@pytest.mark.parametrize("stack", ["decoders", None, 1])
def test_other_stacks_are_refused(stack):
    with pytest.raises(ValueError, match="`stack` must be one of 'encoder', 'decoder', 'both'"):
        ParallelMLPAdapterConfig(stack=stack)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_states_of_a_model_that_writes_are_not_kept(stack, tmp_path):
    row = {name: clip[0] for name, clip in make_inputs("whisper").items()}
    with pytest.raises(ValueError, match="takes a classifier or an encoder"):
        cache_frozen(adapted("ipet", stack), [{**row, "labels": TOKENS[0]}], tmp_path)
    assert not list(tmp_path.iterdir())


def test_input_prompts_and_missing_layers_are_refused():
    with pytest.raises(ValueError, match="`stack` must be 'encoder' for input prompts"):
        METHODS["input_prompt"](stack="decoder")
    with pytest.raises(ValueError, match="for 1 layers"):
        get_peft_model(recognizer(decoder_layers=1), METHODS["ipet"](stack="both", layers_to_transform=[2]))

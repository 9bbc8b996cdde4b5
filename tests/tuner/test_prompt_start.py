"""Prompts that start as tokens of real clips."""

import copy

import pytest
import torch
from clips import Clips
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import (
    BACKBONES,
    METHODS,
    each_typical_backbone,
    make,
    make_ast,
    make_inputs,
    randomize,
    real_whisper,
    trainable,
)
from transformers import WhisperFeatureExtractor

from peft_audio import EmbeddingPromptConfig, IPETConfig, initialize_prompts, resize_whisper
from peft_audio.trainer import AudioTrainer, AudioTrainingArguments
from peft_audio.tuner.encoder_layer import EncoderTunerLayer
from peft_audio.tuner.prompt_start import has_untrained_prompts


def prompts_of(model, adapter="default"):
    layers = [module for module in model.modules() if isinstance(module, EncoderTunerLayer)]
    return [layer.part("prompt")[adapter].embeddings.detach().clone() for layer in layers]


@torch.no_grad()
def entering(model, inputs):
    """What enters each encoder layer: the model's own hidden states."""
    return model.base_model(**inputs, output_hidden_states=True).hidden_states


def distances(prompts, states):
    """Of each prompt from the token that it is closest to."""
    all_distances = torch.cdist(prompts, states.flatten(0, 1), compute_mode="donot_use_mm_for_euclid_dist")
    return all_distances.min(dim=1).values


@pytest.mark.parametrize("backbone", ["ast", "vit", "wav2vec2", "wav2vec2-stable", "hubert", "wavlm"])
@pytest.mark.parametrize("tokens", [3, 500])
def test_they_are_tokens_of_their_layer(backbone, tokens):
    base, inputs = BACKBONES[backbone](), make_inputs(backbone)
    states = entering(base, inputs)
    model = get_peft_model(base, EmbeddingPromptConfig(num_virtual_tokens=tokens))
    assert initialize_prompts(model, {**inputs, "labels": torch.zeros(2)}) is model
    for prompts, layer_states in zip(prompts_of(model), states):
        assert distances(prompts, layer_states).max() < 1e-4
        assert len(prompts.unique(dim=0)) > 1


@each_typical_backbone
@pytest.mark.parametrize("method", ["ipet", "joint", "embedding_prompt"])
def test_nothing_else_changes(backbone, method):
    model = randomize(get_peft_model(BACKBONES[backbone](), METHODS[method]())).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    initialize_prompts(model, make_inputs(backbone))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if ".prompt." in name or "_prompt." in name}
    assert [module.training for module in model.modules()] == modes and torch.equal(torch.get_rng_state(), state)
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert model.active_adapters == ["default"] and trainable(model)


def test_the_base_model_is_what_is_heard():
    """Whatever other parts of the adapter do already."""
    models = [get_peft_model(make_ast(), METHODS["ipet"]()) for _ in range(2)]
    randomize(models[1], std=1.0)
    for model in models:
        initialize_prompts(model, make_inputs("ast"))
    for first, second in zip(*map(prompts_of, models)):
        torch.testing.assert_close(first, second)


def test_the_order_of_the_clips_does_not_matter():
    models = [get_peft_model(make_ast(), METHODS["ipet"]()) for _ in range(2)]
    inputs = make_inputs("ast", batch_size=6)
    initialize_prompts(models[0], inputs)
    initialize_prompts(models[1], {name: value.flip(0) for name, value in inputs.items()})
    for first, second in zip(*map(prompts_of, models)):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=0)


def test_padding_is_left_out():
    base, inputs = make("wav2vec2-stable"), make_inputs("wav2vec2-stable")
    length = inputs["input_values"].shape[1]
    mask = (torch.arange(length) < length // 2).long().expand(len(inputs["input_values"]), -1)
    states = entering(base, {"input_values": inputs["input_values"][:, : length // 2]})
    model = get_peft_model(base, EmbeddingPromptConfig(num_virtual_tokens=40))
    initialize_prompts(model, {**inputs, "attention_mask": mask})
    for prompts, layer_states in zip(prompts_of(model), states):
        assert distances(prompts, layer_states).max() < 1e-3


def test_one_of_several_adapters_can_be_named():
    model = get_peft_model(make_ast(), METHODS["ipet"]())
    model.add_adapter("other", METHODS["ipet"]())
    before = prompts_of(model)
    initialize_prompts(model, make_inputs("ast"), adapter_name="other")
    assert all(torch.equal(*pair) for pair in zip(before, prompts_of(model)))
    assert not any(torch.equal(*pair) for pair in zip(before, prompts_of(model, "other")))
    again = copy.deepcopy(model)
    initialize_prompts(again, make_inputs("ast"), adapter_name="other", seed=1)
    assert not any(torch.equal(*pair) for pair in zip(prompts_of(model, "other"), prompts_of(again, "other")))


@pytest.mark.parametrize(
    "config",
    [METHODS["parallel_mlp"](), LoraConfig(target_modules=["q_proj", "query"]), IPETConfig(layers_to_transform=[])],
)
def test_adapters_without_prompts_are_refused(config):
    model = get_peft_model(make_ast(), config)
    with pytest.raises(ValueError, match="initialize_prompts takes a model with an adapter that has prompts"):
        initialize_prompts(model, make_inputs("ast"))
    with pytest.raises(ValueError, match="adapter_name='other'"):
        initialize_prompts(get_peft_model(make_ast(), IPETConfig()), make_inputs("ast"), adapter_name="other")


def make_trainer(model, folder, **options):
    sizes = {"learning_rate": 1e-12, "max_steps": 2, "save_steps": 1, "save_total_limit": None}
    strategies = {"save_strategy": "steps", "eval_strategy": "no", "use_cpu": True, "disable_tqdm": True}
    arguments = AudioTrainingArguments(output_dir=str(folder), **sizes, **strategies)
    return AudioTrainer(model, arguments, train_dataset=Clips("ast"), **options)


def test_the_trainer_starts_untrained_prompts_and_no_others(tmp_path):
    model = get_peft_model(make_ast(), METHODS["ipet"]())
    drawn = prompts_of(model)
    assert has_untrained_prompts(model)
    make_trainer(copy.deepcopy(model), tmp_path, prompts_from_clips=False).train()
    trained = copy.deepcopy(model)
    make_trainer(trained, tmp_path / "a").train()
    assert not has_untrained_prompts(trained)
    assert all((after - before).abs().max() > 0.1 for before, after in zip(drawn, prompts_of(trained)))
    # A loaded adapter goes on from where it was.
    trained.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(make_ast(), tmp_path / "adapter", is_trainable=True)
    make_trainer(loaded, tmp_path / "b").train()
    for before, after in zip(prompts_of(trained), prompts_of(loaded)):
        torch.testing.assert_close(after, before)


def test_a_run_that_resumes_keeps_its_prompts(tmp_path):
    def trainer():
        torch.manual_seed(0)
        return make_trainer(get_peft_model(make_ast(), METHODS["ipet"]()), tmp_path)

    whole = trainer()
    whole.train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    for before, after in zip(prompts_of(whole.model), prompts_of(resumed.model)):
        torch.testing.assert_close(after, before)


@torch.no_grad()
def test_on_real_weights_they_disturb_little():
    base, extractor = real_whisper(), WhisperFeatureExtractor()
    resize_whisper(base, 2, extractor)
    torch.manual_seed(0)
    clips = (torch.randn(4, 32000) * torch.linspace(0.01, 0.3, 4).unsqueeze(1)).numpy()
    inputs = dict(extractor(list(clips), sampling_rate=16000, return_tensors="pt"))
    alone = base.encoder(**inputs).last_hidden_state
    model = get_peft_model(base, IPETConfig()).eval()

    def change():
        return ((model.base_model.model.encoder(**inputs).last_hidden_state - alone).norm() / alone.norm()).item()

    assert change() > 0.5  # the papers' start
    initialize_prompts(model, inputs)
    assert change() < 0.2

"""Generating with adapters in Whisper's encoder: with and without a cache, by beams, in mixed batches, in the Trainer."""

import dataclasses

import pytest
import torch
import transformers
from peft import get_peft_model
from tiny import METHODS, WHISPER, make_inputs, randomize


WAYS = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "several": {"num_beams": 3, "num_return_sequences": 2},
    "no cache": {"use_cache": False},
    "beams, no cache": {"num_beams": 2, "use_cache": False},
}
each_way = pytest.mark.parametrize("way", WAYS)
each_method = pytest.mark.parametrize("method", ["ipet", "parallel_mlp", "time_freq_conv", "input_prompt"])


def recognizer():
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**{**WHISPER, "vocab_size": 60}))
    model.generation_config.suppress_tokens = [0, 1, 2]  # words only, up to the last
    model.generation_config.begin_suppress_tokens = model.generation_config.forced_decoder_ids = None
    # Weights so large that what the encoder gives decides which token comes next.
    with torch.no_grad():
        for name, parameter in model.model.decoder.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=2.0 if "encoder_attn" in name else 0.3)
    return model.eval()


def with_two(method, **second):
    model = get_peft_model(recognizer(), METHODS[method](), "a")
    model.add_adapter("b", dataclasses.replace(METHODS[method](), **second))
    for seed, name in enumerate("ab"):
        model.set_adapter(name)
        randomize(model, seed=seed + 2, std=50.0 if method == "input_prompt" else 1.0).eval()
    return model


def generated(model, inputs, way, **options):
    transformers.set_seed(0)
    return model.generate(**inputs, max_new_tokens=6, do_sample=False, **WAYS[way], **options)


@each_method
@pytest.mark.parametrize("beams", [1, 3])
def test_a_cache_changes_nothing(method, beams):
    model, inputs = with_two(method), make_inputs("whisper")
    with_cache, without = (
        generated(model, inputs, "greedy", use_cache=cache, num_beams=beams) for cache in (True, False)
    )
    assert torch.equal(with_cache, without)


@each_method
@each_way
def test_each_clip_of_a_mixed_batch_is_recognized_with_its_adapter(method, way):
    check_mixed(with_two(method), way)


@each_way
def test_adapters_with_different_numbers_of_prompts_share_a_batch(way):
    check_mixed(with_two("ipet", num_virtual_tokens=5), way)


def check_mixed(model, way):
    inputs, names = make_inputs("whisper", batch_size=4), ["b", "a", "__base__", "b"]
    expected = {}
    for name in "ab":
        model.set_adapter(name)
        expected[name] = generated(model, inputs, way)
    with model.disable_adapter():
        expected["__base__"] = generated(model, inputs, way)
    rows = len(expected["a"]) // len(names)
    mixed = generated(model, inputs, way, adapter_names=names)
    for index, name in enumerate(names):
        part = slice(rows * index, rows * (index + 1))
        length = expected[name].shape[1]
        assert torch.equal(mixed[part][:, :length], expected[name][part]), (index, name)
    assert len({tuple(tokens.flatten().tolist()) for tokens in expected.values()}) > 1  # else nothing was tested


@each_method
def test_sampled_tokens_are_those_of_the_seed(method):
    model, inputs = with_two(method), make_inputs("whisper")
    first, second = (
        (transformers.set_seed(3), model.generate(**inputs, max_new_tokens=6, do_sample=True))[1] for _ in range(2)
    )
    assert torch.equal(first, second)


def test_the_trainer_predicts_what_is_generated(tmp_path):
    model = with_two("ipet")
    inputs = make_inputs("whisper", batch_size=4)["input_features"]
    rows = [{"input_features": clip, "labels": torch.tensor([1, 3, 2])} for clip in inputs]
    options = {"predict_with_generate": True, "generation_max_length": 7, "per_device_eval_batch_size": 2}
    arguments = transformers.Seq2SeqTrainingArguments(str(tmp_path), report_to=[], use_cpu=True, **options)
    trainer = transformers.Seq2SeqTrainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    predicted = trainer.predict(rows).predictions
    expected = model.generate(input_features=inputs, max_length=7, do_sample=False)
    assert predicted[:, : expected.shape[1]].tolist() == expected.tolist()
    trainer.train()

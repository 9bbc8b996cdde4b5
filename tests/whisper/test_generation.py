"""Generating with adapters in Whisper's encoder: with and without a cache, by beams, in mixed batches, in the Trainer."""

import dataclasses

import pytest
import torch
import transformers
from peft import get_peft_model
from recognizers import WAYS, generated, recognizer
from tiny import METHODS, make_inputs, randomize


each_way = pytest.mark.parametrize("way", [way for way in WAYS if way != "sampled"])
each_method = pytest.mark.parametrize("method", ["ipet", "parallel_mlp", "time_freq_conv", "input_prompt"])


def with_two(method, **second):
    model = get_peft_model(recognizer(), METHODS[method](), "a")
    model.add_adapter("b", dataclasses.replace(METHODS[method](), **second))
    for seed, name in enumerate("ab"):
        model.set_adapter(name)
        randomize(model, seed=seed + 2, std=50.0 if method == "input_prompt" else 1.0).eval()
    return model


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

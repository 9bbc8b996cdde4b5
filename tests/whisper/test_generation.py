"""Generating with adapters in Whisper's encoder: with and without a cache, by beams, in mixed batches, in the Trainer."""

import pytest
import torch
import transformers
from recognizers import WAYS, check_mixed, generated, recognizer, with_two
from tiny import METHODS, make_inputs


NAMES = ["b", "a", "__base__", "b"]
each_way = pytest.mark.parametrize("way", [way for way in WAYS if way != "sampled"])
each_method = pytest.mark.parametrize("method", ["ipet", "parallel_mlp", "time_freq_conv", "input_prompt"])


def two_adapters(method, **second):
    return with_two(recognizer(), METHODS[method](), 50.0 if method == "input_prompt" else 1.0, **second)


@each_method
@pytest.mark.parametrize("beams", [1, 3])
def test_a_cache_changes_nothing(method, beams):
    model, inputs = two_adapters(method), make_inputs("whisper")
    with_cache, without = (
        generated(model, inputs, "greedy", use_cache=cache, num_beams=beams) for cache in (True, False)
    )
    assert torch.equal(with_cache, without)


@each_method
@each_way
def test_each_clip_of_a_mixed_batch_is_recognized_with_its_adapter(method, way):
    check_mixed(two_adapters(method), way, NAMES)


@each_way
def test_adapters_with_different_numbers_of_prompts_share_a_batch(way):
    check_mixed(two_adapters("ipet", num_virtual_tokens=5), way, NAMES)


@each_method
def test_sampled_tokens_are_those_of_the_seed(method):
    model, inputs = two_adapters(method), make_inputs("whisper")
    first, second = (
        (transformers.set_seed(3), model.generate(**inputs, max_new_tokens=6, do_sample=True))[1] for _ in range(2)
    )
    assert torch.equal(first, second)


def test_the_trainer_predicts_what_is_generated(tmp_path):
    model = two_adapters("ipet")
    inputs = make_inputs("whisper", batch_size=4)["input_features"]
    rows = [{"input_features": clip, "labels": torch.tensor([1, 3, 2])} for clip in inputs]
    options = {"predict_with_generate": True, "generation_max_length": 7, "per_device_eval_batch_size": 2}
    arguments = transformers.Seq2SeqTrainingArguments(str(tmp_path), report_to=[], use_cpu=True, **options)
    trainer = transformers.Seq2SeqTrainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    predicted = trainer.predict(rows).predictions
    expected = model.generate(input_features=inputs, max_length=7, do_sample=False)
    assert predicted[:, : expected.shape[1]].tolist() == expected.tolist()
    trainer.train()

"""Training from cached states of the frozen part: the same losses, gradients and weights as from the input."""

import copy
import random

import numpy as np
import pytest
import torch
from cached import (
    FIRST_LAYER,
    RUNS,
    SETUPS,
    Samples,
    assert_only_runs_from,
    batch_of,
    cache,
    frozen_head,
    steps,
)
from peft import get_peft_model
from safetensors.torch import load_file
from tiny import (
    METHODS,
    WITH_PADDING,
    make,
    randomize,
)
from transformers import Trainer, TrainingArguments

from peft_audio import use_mean_token_pooling, use_statistics_pooling
from peft_audio.caching import cache_frozen


@pytest.mark.parametrize("backbone, setup", RUNS)
def test_training_is_the_same_as_from_the_input(backbone, setup, tmp_path):
    samples = Samples(backbone, padded=backbone in WITH_PADDING)
    model = randomize(SETUPS[setup](backbone))
    cached = cache(model, samples, tmp_path, backbone)
    expected = steps(copy.deepcopy(model), batch_of(samples))
    torch.testing.assert_close(steps(model, batch_of(cached)), expected, rtol=1e-5, atol=2e-6)
    model.eval()
    assert_only_runs_from(FIRST_LAYER[setup], model, batch_of(samples), batch_of(cached))
    with torch.no_grad():
        logits = [model(**batch_of(data)).logits for data in (samples, cached)]
    torch.testing.assert_close(*logits, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    "backbone, setup", [("ast", "linear_probe"), ("wav2vec2", "upper_ipet"), ("whisper", "upper_lora")]
)
def test_the_trainer_writes_the_files_of_a_run_without_cache(backbone, setup, tmp_path):
    samples, held_out = Samples(backbone, num_clips=8), Samples(backbone, num_clips=6)

    def train(name, prepare):
        torch.manual_seed(0)
        model = SETUPS[setup](backbone)
        settings = {"per_device_train_batch_size": 2, "max_steps": 6, "save_steps": 3, "learning_rate": 1e-2}
        quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "eval_strategy": "steps", "eval_steps": 3}
        arguments = TrainingArguments(
            output_dir=str(tmp_path / name), load_best_model_at_end=True, **settings, **quiet
        )
        data = {"train_dataset": prepare(model, samples), "eval_dataset": prepare(model, held_out)}
        trainer = Trainer(model, arguments, **data)
        trainer.train()
        files = {path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*") if path.is_file()}
        logits = trainer.predict(data["eval_dataset"]).predictions
        return load_file(tmp_path / name / "checkpoint-6" / "adapter_model.safetensors"), logits, files

    expected = train("raw", lambda model, data: data)
    received = train("cached", lambda model, data: cache(model, data, tmp_path / "states"))
    torch.testing.assert_close(received[0], expected[0], rtol=1e-4, atol=1e-5)
    assert received[2] == expected[2]
    torch.testing.assert_close(torch.tensor(received[1]), torch.tensor(expected[1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("pool", [use_statistics_pooling, use_mean_token_pooling])
def test_other_heads_are_cached_in_front_of_what_trains(pool, padded, tmp_path):
    backbone = "ast" if pool is use_mean_token_pooling else "wav2vec2"
    samples = Samples(backbone, padded=padded and backbone in WITH_PADDING)
    model = randomize(get_peft_model(pool(make(backbone)), METHODS["linear_probe"]()))
    cached = cache(model, samples, tmp_path)
    expected = steps(copy.deepcopy(model), batch_of(samples))
    torch.testing.assert_close(steps(model, batch_of(cached)), expected, rtol=1e-5, atol=2e-6)


def test_frozen_layer_weights_are_no_obstacle_for_the_head(tmp_path):
    samples = Samples("wav2vec2", padded=True)
    model = randomize(frozen_head("wav2vec2", use_weighted_layer_sum=True))
    cached = cache(model, samples, tmp_path)
    expected = steps(copy.deepcopy(model), batch_of(samples))
    torch.testing.assert_close(steps(model, batch_of(cached)), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    "backbone, setup", [("wav2vec2-conformer-relative", "upper_lora"), ("wav2vec2-conformer-rotary", "upper_ipet")]
)
def test_caching_leaves_modes_buffers_and_random_numbers(backbone, setup, tmp_path):
    model = SETUPS[setup](backbone).train()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def draw():
        return torch.rand(1), np.random.rand(), random.random()

    def seed():
        torch.manual_seed(3), np.random.seed(3), random.seed(3)

    seed()
    expected = draw()
    seed()
    cache_frozen(model, Samples(backbone), tmp_path, deterministic=setup == "upper_lora")
    assert draw() == expected
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())

"""Training from cached states of the frozen part: the same losses, gradients and weights as from the input."""

import copy
import random

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny import (
    BACKBONES,
    METHODS,
    NUM_LAYERS,
    WITH_PADDING,
    make,
    make_inputs,
    randomize,
    trainable,
)
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode
from transformers import Trainer, TrainingArguments

from peft_audio import use_mean_token_pooling, use_statistics_pooling
from peft_audio.backbones import resolve
from peft_audio.frozen import cache_frozen
from peft_audio.tuner_layer import keep_frozen_statistics


NUM_CLIPS = 4
ADAPTED_BY_LORA = ["q_proj", "linear_q", "query", "query_proj"]
# Only in training mode do their convolutions' batch norms follow the data; this package keeps them from it, others do not.
WITH_BATCH_NORM = ("wav2vec2-conformer-relative", "wav2vec2-conformer-rotary")


def frozen_head(backbone, **options):
    model = make(backbone, **options).requires_grad_(False)
    for name in ("projector", "classifier"):
        if hasattr(model, name):
            getattr(model, name).requires_grad_(True)
    return model


def with_lora(backbone, **options):
    config = LoraConfig(target_modules=ADAPTED_BY_LORA, layers_to_transform=[1, 2], modules_to_save=["classifier"])
    return get_peft_model(make(backbone, **options), config)


SETUPS = {
    "head": frozen_head,
    "linear_probe": lambda backbone, **o: get_peft_model(make(backbone, **o), METHODS["linear_probe"]()),
    "upper_ipet": lambda backbone, **o: get_peft_model(
        make(backbone, **o), METHODS["ipet"](layers_to_transform=[1, 2])
    ),
    "all_joint": lambda backbone, **o: get_peft_model(make(backbone, **o), METHODS["joint"]()),
    "upper_lora": with_lora,
}
FIRST_LAYER = {"head": NUM_LAYERS, "linear_probe": NUM_LAYERS, "upper_ipet": 1, "all_joint": 0, "upper_lora": 1}
RUNS = [(backbone, setup) for backbone in BACKBONES for setup in ("linear_probe", "upper_ipet", "upper_lora")]
RUNS += [(backbone, setup) for backbone in ("ast", "wav2vec2", "wavlm", "sew-d") for setup in ("head", "all_joint")]


class Samples(torch.utils.data.Dataset):
    """Clips with labels, some with padding told by a mask."""

    def __init__(self, backbone, padded=False, num_clips=NUM_CLIPS):
        ((self.main, self.inputs),) = make_inputs(backbone, num_clips).items()
        self.mask = None
        if padded:
            length = self.inputs.shape[1]
            self.mask = torch.ones(num_clips, length, dtype=torch.long)
            self.mask[1::2, int(0.625 * length) :] = 0
            self.inputs = self.inputs * self.mask.reshape(num_clips, length, *[1] * (self.inputs.dim() - 2))

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        mask = {} if self.mask is None else {"attention_mask": self.mask[index]}
        return {self.main: self.inputs[index], **mask, "labels": index % 2}


def batch_of(dataset):
    return default_collate([dataset[index] for index in range(len(dataset))])


def steps(model, batch, count=3):
    """Losses, the first gradients, and the weights after some steps of training."""
    keep_frozen_statistics(model.train())
    optimizer = torch.optim.SGD(trainable(model).values(), lr=0.01)
    losses = []
    for number in range(count):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        if number == 0:
            gradients = {name: p.grad.clone() for name, p in trainable(model).items() if p.grad is not None}
        optimizer.step()
        losses.append(loss.detach())
    return losses, gradients, {name: p.detach().clone() for name, p in trainable(model).items()}


FRONT = ("feature_extractor", "feature_projection", "embeddings", "pos_conv_embed", ".conv1", ".conv2")


def assert_only_runs_from(first_layer, model, raw, cached):
    """By the multiplications in each module: those of a raw batch, but none before this encoder layer."""
    model = copy.deepcopy(model).requires_grad_(False)
    counts = []
    for batch in (raw, cached):
        with FlopCounterMode(display=False) as counter:
            model(**batch)
        counts.append({name: sum(flops.values()) for name, flops in counter.get_flop_counts().items()})
    layers = tuple(f".{name}" for name in resolve(unwrapped(model)).layer_names)
    frozen = [name for name in counts[0] if name.endswith((*layers[:first_layer], *FRONT))]
    running = [name for name in counts[0] if name.endswith(layers[first_layer:])]
    assert len(frozen) > first_layer and len(running) == NUM_LAYERS - first_layer
    assert all(counts[0][name] > 0 for name in running)
    assert {name: counts[1].get(name, 0) for name in (*frozen, *running)} == {
        **dict.fromkeys(frozen, 0),
        **{name: counts[0][name] for name in running},
    }
    assert 0 < counts[1]["Global"] < counts[0]["Global"]


def unwrapped(model):
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def cache(model, samples, folder, backbone="", **options):
    return cache_frozen(model, samples, folder, deterministic=backbone in WITH_BATCH_NORM, **options)


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


def logits(model, batch, **options):
    with torch.no_grad():
        return model(**batch, **options).logits


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

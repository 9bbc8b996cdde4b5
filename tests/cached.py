"""Models of which a part is frozen, data sets for them, and what training gives."""

import copy

import torch
from peft import LoraConfig, get_peft_model
from tiny import (
    BACKBONES,
    METHODS,
    NUM_LAYERS,
    make,
    make_inputs,
    trainable,
)
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode

from peft_audio.backbones.table import resolve
from peft_audio.caching import cache_frozen
from peft_audio.tuner.tuner_layer import keep_frozen_statistics


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
        model(**batch)  # a copy checks by a sample first that it computes the same
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


def logits(model, batch, **options):
    with torch.no_grad():
        return model(**batch, **options).logits

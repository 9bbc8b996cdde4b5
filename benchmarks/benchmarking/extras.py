"""Comparisons that are no step of a subject: caches, mixed batches, inference, loading."""

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import WhisperConfig, WhisperForAudioClassification

from benchmarking.measure import Batch, Precision, flops, prediction, time_each, training_step
from benchmarking.pipeline import pipeline
from benchmarking.subjects import AST_128, AST_1024, IPET, LORA, SIDE, SUBJECTS, WAV2VEC2_1, WAV2VEC2_3, Input
from benchmarking.targets import Outcome
from peft_audio import IPETConfig, ParallelMLPAdapterConfig, cache_frozen, resize_ast, resize_whisper


NUM_ADAPTERS = 8
CLIPS = 4  # of the data sets that are cached


def inference(precision: Precision, repeats: int) -> Iterator[Outcome]:
    """An adapted model against the bare one."""
    bare = AST_1024.make_model().to(precision.device).eval()
    adapted = SUBJECTS[IPET](AST_1024.make_model()).to(precision.device).eval()
    batch = on_device(AST_1024.make_batch(1), precision)
    seconds = time_each(
        {"bare": prediction(bare, batch, precision), "adapted": prediction(adapted, batch, precision)},
        repeats,
        precision,
    )
    yield Outcome(f"{AST_1024.name}: {IPET} / bare model, inference", seconds["adapted"] / seconds["bare"], 1.02)


def short_clips(precision: Precision, repeats: int) -> Iterator[Outcome]:
    """Clips of 1 s: a resized AST against padding to 1024 frames, a step of IPET each."""
    padded = SUBJECTS[IPET](AST_1024.make_model()).to(precision.device).train()
    resized = AST_1024.make_model()
    resize_ast(resized, max_length=AST_128.size)
    resized = SUBJECTS[IPET](resized).to(precision.device).train()
    seconds = time_each(
        {
            "padded": training_step(padded, on_device(AST_1024.make_batch(2), precision), precision),
            "resized": training_step(resized, on_device(AST_128.make_batch(2), precision), precision),
        },
        repeats,
        precision,
    )
    name = "AST-base, clips of 1 s: padded to 1024 frames / resize_ast(128), step seconds"
    yield Outcome(name, seconds["padded"] / seconds["resized"], 7.5, at_least=True)


def short_whisper_clips(precision: Precision, repeats: int) -> Iterator[Outcome]:
    """Clips of 1 s: a resized Whisper against padding to 30 s, a step of IPET each. Of tiny.en's size, random weights."""
    models, steps = {}, {}
    for name, seconds in (("padded", 30), ("resized", 1)):
        sizes = {"d_model": 384, "encoder_layers": 4, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536}
        base = WhisperForAudioClassification(WhisperConfig(**sizes, decoder_layers=1, num_labels=10))
        models[name] = SUBJECTS[IPET](resize_whisper(base, seconds)).to(precision.device).train()
        batch = {"input_features": torch.randn(2, 80, 100 * seconds), "labels": torch.tensor([0, 1])}
        steps[name] = training_step(models[name], on_device(batch, precision), precision)
    seconds = time_each(steps, repeats, precision)
    name = "Whisper tiny, clips of 1 s: padded to 30 s / resize_whisper(1), step seconds"
    yield Outcome(name, seconds["padded"] / seconds["resized"], 15, at_least=True)


def cached(precision: Precision, repeats: int) -> Iterator[Outcome]:
    """Epochs from the cache against epochs from the input: a linear probe, and adapters in the upper half. Without
    dropout, which leaves nothing to cache."""
    probe = ParallelMLPAdapterConfig(layers_to_transform=[])
    upper = IPETConfig(num_virtual_tokens=4, bottleneck_dim=32, layers_to_transform=list(range(6, 12)))
    in_upper_half = "IPET in the upper half of the layers"
    cases = [
        (AST_1024, "linear probe", probe, 100),
        (AST_1024, in_upper_half, upper, 1.4),
        (WAV2VEC2_3, in_upper_half, upper, 1.8),
    ]
    for source, name, config, target in cases:
        model = get_peft_model(source.make_model(dropout=False), copy.deepcopy(config)).to(precision.device).train()
        name = f"{name}, epoch from the input / from the cache"
        yield from_cache(source, name, model, model, target, precision, repeats)
    lora, side = (SUBJECTS[name](AST_1024.make_model()).to(precision.device).train() for name in (LORA, SIDE))
    name = "epoch of LoRA / of the side network from the cache"
    yield from_cache(AST_1024, name, lora, side, 25, precision, repeats)


def from_cache(
    source: Input,
    name: str,
    baseline: nn.Module,
    model: nn.Module,
    target: float,
    precision: Precision,
    repeats: int,
) -> Outcome:
    """How many epochs of `model` from the cache take the time of one of `baseline` from the input."""
    clips = [{key: value[0] for key, value in source.make_batch(1, seed).items()} for seed in range(CLIPS)]
    with TemporaryDirectory() as folder:
        states = cache_frozen(model, clips, Path(folder), batch_size=1)
        epochs = {"input": epoch_of(baseline, clips, precision), "cache": epoch_of(model, states, precision)}
        seconds = time_each(epochs, repeats, precision)
    return Outcome(f"{source.name}: {name}", seconds["input"] / seconds["cache"], target, at_least=True)


def epoch_of(model: nn.Module, clips, precision: Precision) -> Callable[[], None]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    loader = torch.utils.data.DataLoader(clips, batch_size=2)

    def epoch() -> None:
        for batch in loader:
            optimizer.zero_grad()
            with precision.autocast():
                loss = model(**on_device(batch, precision)).loss
            loss.backward()
            optimizer.step()

    return epoch


def mixed(precision: Precision, repeats: int) -> Iterator[Outcome]:
    """Eight clips with eight adapters against eight clips with one."""
    for source in (AST_128, WAV2VEC2_1):
        model = with_several(source).to(precision.device).eval()
        batch = on_device(source.make_batch(NUM_ADAPTERS), precision)
        names = {"adapter_names": [f"adapter{i}" for i in range(NUM_ADAPTERS)]}
        seconds = time_each(
            {
                "one": prediction(model, batch, precision),
                "several": prediction(model, batch | names, precision),
            },
            repeats,
            precision,
        )
        name = f"{source.name}: a batch with {NUM_ADAPTERS} adapters / with one, inference"
        yield Outcome(name, seconds["several"] / seconds["one"], 1.25)


def with_several(source: Input) -> PeftModel:
    def config() -> IPETConfig:
        return IPETConfig(num_virtual_tokens=4, bottleneck_dim=32, init_weights=False)

    model = get_peft_model(source.make_model(), config(), adapter_name="adapter0")
    for number in range(1, NUM_ADAPTERS):
        model.add_adapter(f"adapter{number}", config())
    return model


def switching(precision: Precision, repeats: int) -> Iterator[Outcome]:
    """Milliseconds of making another adapter active, and of loading one."""
    model = with_several(AST_1024).to(precision.device).eval()

    def switch(number: int) -> None:
        model.set_adapter(f"adapter{number % NUM_ADAPTERS}")

    yield Outcome("AST-base: switching the active adapter", milliseconds(switch, 4 * repeats), 5, unit="ms")
    with TemporaryDirectory() as folder:
        model = SUBJECTS[IPET](AST_1024.make_model()).to(precision.device).eval()
        model.save_pretrained(folder)

        def load(number: int) -> None:
            model.load_adapter(folder, f"loaded{number}")

        def unload(number: int) -> None:
            model.delete_adapter(f"loaded{number}")

        load_ms = milliseconds(load, 2 * repeats, unload)
    yield Outcome("AST-base: loading an adapter from disk", load_ms, 100, unit="ms")


def milliseconds(
    action: Callable[[int], None], repeats: int, undo: Callable[[int], None] = lambda number: None
) -> float:
    """Median over calls with the numbers 1, 2, ..., after one with 0; `undo` takes no part in it."""
    seconds = []
    for number in range(repeats + 1):
        start = time.perf_counter()
        action(number)
        seconds.append(time.perf_counter() - start)
        undo(number)
    return 1e3 * statistics.median(seconds[1:])


def utilization(precision: Precision, repeats: int, batch_size: int, peak_flops: float) -> Iterator[Outcome]:
    """Share of the device's arithmetic that a step of IPET uses, by the operations that it needs, and LoRA's time."""
    batch = on_device(AST_1024.make_batch(batch_size), precision)
    models = {name: SUBJECTS[name](AST_1024.make_model()).to(precision.device).train() for name in (IPET, LORA)}
    steps = {name: training_step(model, batch, precision) for name, model in models.items()}
    seconds = time_each(steps, repeats, precision)
    name = f"{AST_1024.name}, batch {batch_size}, {precision.dtype}"
    yield Outcome(f"{name}: {IPET}, model FLOP utilization", flops(steps[IPET]) / seconds[IPET] / peak_flops, None)
    yield Outcome(f"{name}: {IPET} / {LORA}, step seconds", seconds[IPET] / seconds[LORA], 1.0)


def on_device(batch: Batch, precision: Precision) -> Batch:
    return {name: value.to(precision.device) for name, value in batch.items()}


EXTRAS = {
    "inference": inference,
    "short clips": short_clips,
    "short clips, Whisper": short_whisper_clips,
    "cached": cached,
    "mixed": mixed,
    "switching": switching,
    "pipeline": pipeline,
}

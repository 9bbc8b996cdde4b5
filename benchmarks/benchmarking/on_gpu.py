"""Steps of every method in large batches on a GPU: time, the share of its arithmetic that is used, memory."""

import gc
import time
from collections.abc import Iterator

import torch
from torch import nn

from benchmarking.extras import on_device
from benchmarking.measure import (
    Precision,
    allocated_bytes,
    flops,
    highest_bytes,
    prediction,
    time_each,
    time_rounds,
    trainable_parameters,
    training_step,
)
from benchmarking.subjects import (
    AST_1024,
    FULL,
    IPET,
    LAYER_WIDE,
    LAYER_WIDE_FROZEN,
    LORA,
    LORA_FROZEN,
    SUBJECTS,
    WAV2VEC2_3,
    WHISPER_5,
    WHISPER_30,
    Input,
    make_subjects,
)


# With the shares of the time that they get.
GPU_INPUTS = {AST_1024: 4, WAV2VEC2_3: 2, WHISPER_5: 1, WHISPER_30: 2}
# For a try on a CPU.
TINY_INPUTS = [Input("AST-base", 128, True), Input("wav2vec2-base", 1, True), Input("Whisper-base", 1, True)]
# What a run that is cut short should have. The others follow, but for those whose comparisons are about CPUs.
FIRST = [FULL, LORA, IPET, *(name for name in SUBJECTS if name.startswith("side network"))]
LEFT_OUT = (LAYER_WIDE, LAYER_WIDE_FROZEN)
CARDS_GB = (8, 16, 24)
MIN_ROUNDS, MAX_ROUNDS = 3, 10
# Dense bfloat16 products a second, from data sheets, by what the names of cards contain.
PEAK_TFLOPS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40": 181, "RTX 4090": 165, "L4": 121}
Rows = list[dict]


def subjects_of(source: Input, names: list[str] | None = None) -> list[str]:
    """The methods in the order in which they are measured."""
    order = [*FIRST, *(name for name in SUBJECTS if name not in (*FIRST, *LEFT_OUT))]
    # Nothing but a waveform model has a feature encoder to freeze.
    order = [name for name in order if name != LORA_FROZEN or source.backbone == "wav2vec2-base"]
    return order if names is None else [name for name in order if name in names]


def measure(source: Input, names: list[str], batch_size: int, precision: Precision, until: float) -> Iterator[Rows]:
    """Yields the rows of an input, a method each, whenever something was added; rounds end at the time `until`."""
    rows, models = [], {}
    batch = on_device(source.make_batch(batch_size), precision)
    for name, model in make_subjects(source, names):
        rows.append({"input": source.name, "method": name, "batch_size": batch_size})
        try:
            rows[-1].update(alone(model, source, batch_size, precision))
            models[name] = model
        except Exception as error:  # one method that does not run leaves the others their turn
            rows[-1]["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            model.to("cpu")
        yield rows
    for figure, make, trains, share in (
        ("step_seconds", training_step, True, 0.75),
        ("forward_seconds", prediction, False, 1.0),
    ):
        end = time.monotonic() + share * (until - time.monotonic())
        functions = {name: make(model.train(trains), batch, precision) for name, model in models.items()}
        for count, seconds in enumerate(time_rounds(functions, MAX_ROUNDS, precision, calls=2), start=1):
            for row in rows:
                if row["method"] in seconds:
                    row[figure] = seconds[row["method"]]
            yield rows
            if count >= MIN_ROUNDS and time.monotonic() > end:
                break


def alone(model: nn.Module, source: Input, batch_size: int, precision: Precision) -> dict:
    """What a method takes that does not depend on the others: parameters, operations, and on a GPU memory."""
    on_gpu = precision.device.type == "cuda"
    gc.collect()  # models of an earlier input
    before = allocated_bytes() if on_gpu else 0
    model.to(precision.device)
    figures = {"trainable_parameters": trainable_parameters(model), "peak_bytes": {}}
    for size in (max(batch_size // 4, 1), batch_size):
        step = training_step(model, on_device(source.make_batch(size), precision), precision)
        step()
        if on_gpu:
            figures["peak_bytes"][str(size)] = highest_bytes(step) - before
        if size == batch_size:
            figures["flops"] = flops(step)
        model.zero_grad()
        del step  # with the optimizer's state
        gc.collect()
    figures["largest_batches"] = largest_batches(figures["peak_bytes"])
    return figures


def largest_batches(peak_bytes: dict[str, int]) -> dict[str, int]:
    """The largest batch whose step fits a card of so many GB (10^9 bytes), on a line through two sizes.

    A card of "24 GB" has 24 * 2^30 bytes. The rest is for CUDA itself.
    """
    if len(peak_bytes) < 2:
        return {}
    (small, low), (large, high) = ((int(size), peak) for size, peak in peak_bytes.items())
    for_a_clip = (high - low) / (large - small)
    return {str(card): max(int((card * 1e9 - low) / for_a_clip) + small, 0) for card in CARDS_GB}


def peak_tflops(card: str) -> float | None:
    return next((peak for name, peak in PEAK_TFLOPS.items() if name in card), None)


def measured_tflops(precision: Precision, size: int = 8192) -> float:
    """What a large product of matrices reaches in this precision, the most that a model can."""
    left, right = (torch.randn(size, size, device=precision.device, dtype=precision.dtype) for _ in range(2))
    seconds = time_each({"product": lambda: left @ right}, 10, precision)["product"]
    return 2 * size**3 / seconds / 1e12

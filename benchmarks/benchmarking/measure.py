"""Seconds, bytes and floating point operations of a model's steps."""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarking.layer_wide import LayerWidePrompts


aten = torch.ops.aten
Batch = dict[str, torch.Tensor]


class Precision:
    """The arithmetic that steps are measured in: float32, or bfloat16 by autocast."""

    def __init__(self, device: str = "cpu", dtype: torch.dtype = torch.float32):
        self.device = torch.device(device)
        self.dtype = dtype

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def training_step(model: nn.Module, batch: Batch, precision: Precision) -> Callable[[], None]:
    """A step of AdamW on a batch, as a Trainer takes it."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def step() -> None:
        optimizer.zero_grad()
        with precision.autocast():
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()

    return step


def prediction(model: nn.Module, batch: Batch, precision: Precision) -> Callable[[], None]:
    """A forward pass for inference; `model` should be in evaluation mode by then."""

    def predict() -> None:
        with torch.no_grad(), precision.autocast():
            model(**batch)

    return predict


def time_each(functions: dict[str, Callable[[], None]], repeats: int, precision: Precision) -> dict[str, float]:
    """Median seconds by name. The functions take turns, so that whatever slows the machine down slows all of them."""
    *_, medians = time_rounds(functions, repeats, precision)
    return medians


def time_rounds(
    functions: dict[str, Callable[[], None]], repeats: int, precision: Precision, calls: int = 1
) -> Iterator[dict[str, float]]:
    """As `time_each`, with the medians so far after each round; `calls` follow each other in a turn, as in training."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(repeats):
        for name, function in functions.items():
            precision.wait()
            start = time.perf_counter()
            for _ in range(calls):
                function()
            precision.wait()
            seconds[name].append((time.perf_counter() - start) / calls)
        yield {name: statistics.median(values) for name, values in seconds.items()}


class MadeStorages(TorchDispatchMode):
    """Keeps track of the memory that operations take, without keeping it alive."""

    def __init__(self):
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outputs = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return outputs

    def bytes_alive(self, without: Iterable[torch.Tensor]) -> int:
        others = {tensor.untyped_storage()._cdata for tensor in without}
        return sum(size for key, (ref, size) in self.storages.items() if key not in others and not ref.expired())


def saved_bytes(model: nn.Module, batch: Batch, precision: Precision) -> int:
    """Bytes that a forward pass keeps for the backward pass: what it has made that is alive behind the loss.

    Parameters and the batch are not counted. The same number as with `saved_tensors_hooks`, which cannot look into
    models that use such hooks themselves.
    """
    with precision.autocast(), MadeStorages() as made:
        loss = model(**batch).loss
    return made.bytes_alive([loss, *model.parameters(), *model.buffers(), *batch.values()])


def peak_bytes(step: Callable[[], None], precision: Precision) -> int | None:
    """Memory of the GPU that a step takes beyond what was taken before; None on a CPU."""
    if precision.device.type != "cuda":
        return None
    step()
    before = allocated_bytes()
    return highest_bytes(step) - before


def allocated_bytes() -> int:
    """Memory of the GPU that tensors take now."""
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


def highest_bytes(step: Callable[[], None]) -> int:
    """The most memory of the GPU that tensors take while a step runs."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


# torch has no formulas for attention's kernels on CPUs.
FORMULAS = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_flash_attention_backward
    ],
}


class CountedFlops(TorchDispatchMode):
    """Adds up operations by torch's formulas. Unlike torch's counter it puts no hooks on modules, beside which adapted
    layers leave nothing out."""

    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outputs = function(*args, **(kwargs or {}))
        formula = FORMULAS.get(function._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=outputs)
        return outputs


def flops(step: Callable[[], None]) -> int:
    """Floating point operations of matrix products, convolutions and attention in a step."""
    with CountedFlops() as counted:
        step()
    return counted.total


def trainable_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def checkpoint_bytes(model: nn.Module) -> int | None:
    """Size of the weights' file; None for the plain reference, which PEFT cannot save."""
    if any(isinstance(module, LayerWidePrompts) for module in model.modules()):
        return None
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))

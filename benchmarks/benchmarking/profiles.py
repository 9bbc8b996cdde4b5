"""Where the time of a step goes: the kernels on a GPU, the operations on a CPU."""

from collections.abc import Callable

import torch
from torch.autograd import DeviceType

from benchmarking.measure import Precision


def kernels(step: Callable[[], None], precision: Precision) -> list[dict]:
    """What a step runs, with calls and seconds of its own, the longest first."""
    step()
    precision.wait()
    with torch.profiler.profile() as profiler:
        step()
        precision.wait()
    on_gpu = precision.device.type == "cuda"
    kind, time = (DeviceType.CUDA, "self_device_time_total") if on_gpu else (DeviceType.CPU, "self_cpu_time_total")
    # Operations on the CPU have the time of their kernels too, and annotations that of all kernels within.
    events = [
        event
        for event in profiler.key_averages()
        if event.device_type == kind and not getattr(event, "is_user_annotation", False)
    ]
    found = [{"kernel": e.key, "calls": e.count, "seconds": getattr(e, time) / 1e6} for e in events]
    return sorted((row for row in found if row["seconds"]), key=lambda row: row["seconds"], reverse=True)

"""Learning rates that change with the epochs, for the Trainer's `optimizers=(optimizer, schedule)`."""

import functools
import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def epoch_steps(
    optimizer: Optimizer,
    steps_per_epoch: int,
    start: int,
    stop: int,
    every: int = 1,
    factor: float = 0.85,
    warmup_steps: int = 0,
) -> LambdaLR:
    """Multiplies the learning rate by `factor` after each of the epochs range(start, stop, every).

    AST's schedule, which IPET and AAT use: x 0.85 after epochs 5 to 25, so from epoch 6 on if the first epoch is 1,
    is `start=5, stop=26`; AAT's for OpenMIC `start=10, stop=number of epochs, every=5, factor=0.5` with a warm-up.

    Args:
        optimizer: with the full learning rate.
        steps_per_epoch: optimizer steps of an epoch: its batches over gradient_accumulation_steps, rounded up.
        start: the epochs (from 1) after which the rate first changes.
        stop: the first epoch after which it no longer does.
        every: epochs between two changes.
        factor: above 0.
        warmup_steps: optimizer steps in which the rate rises linearly from 0, on top of the rest.

    Raises:
        ValueError: an argument is out of its range.
    """
    for name, value, least in (
        ("steps_per_epoch", steps_per_epoch, 1),
        ("start", start, 1),
        ("stop", stop, start),
        ("every", every, 1),
        ("warmup_steps", warmup_steps, 0),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}.")
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < math.inf:
        raise ValueError(f"factor must be a number above 0, got {factor!r}.")
    milestones = range(start, stop, every)
    return LambdaLR(optimizer, functools.partial(_rate, steps_per_epoch, milestones, factor, warmup_steps))


def _rate(steps_per_epoch: int, milestones: range, factor: float, warmup_steps: int, step: int) -> float:
    passed = sum(milestone <= step // steps_per_epoch for milestone in milestones)
    warmed_up = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    return warmed_up * factor**passed

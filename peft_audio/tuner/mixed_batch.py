"""A different adapter, with its own head, for each sample of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ..heads.weighted_layer_sum import LayerWeights
from ..upstream.peft_modules import adapter_names as adapter_names_of
from ..upstream.peft_modules import adapters_of
from ..utils.forward_pass import ForwardPass, PassState, Samples
from .samples import join, samples_by_adapter, take
from .tuner_layer import HookedTunerLayer


BASE = "__base__"  # PEFT's name for "no adapter" in a mixed batch


class Request(NamedTuple):
    """What `adapter_names` asks of the calls of a model.

    Attributes:
        samples: the samples of each adapter.
        together: whether one pass serves all of them.
    """

    samples: Samples
    together: bool


@contextmanager
def mixed_batch(model: nn.Module, adapter_names: Sequence[str]) -> Iterator[None]:
    """Within, a call of `model` by this thread gives each sample the adapter of that name, "__base__" for none.

    The backbone runs once, and every adapter on its own samples. Where that cannot be, because the adapters have
    different numbers of prompts or weight the layers differently, the samples of each adapter run through the model on
    their own; the loss is the mean over all samples either way.

    Args:
        model: the base model with adapters on it, in evaluation mode.
        adapter_names: one name for each sample.

    Raises:
        ValueError: if the model is in training mode, a name is unknown, or (when called) the batch has another size.
    """
    adapter_names = list(adapter_names)
    _check(model, adapter_names)
    samples, forward_pass = samples_by_adapter(adapter_names), ForwardPass.of(model)
    before, num_claims = forward_pass.request, len(forward_pass.claims)
    forward_pass.request = Request(samples, _fit_together(model, list(samples)))
    try:
        yield
    finally:
        forward_pass.request = before
        del forward_pass.claims[num_claims:]  # those of calls that a hook interrupted


def run_mixed(
    forward_pass: ForwardPass, request: Request, forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any]
) -> Any:
    """Run a model as `mixed_batch` says; `forward` runs it once.

    Raises:
        ValueError: if the batch has another size than there are names.
    """
    samples = request.samples
    check_size(samples, args, kwargs)
    if request.together:
        return forward_pass.run(PassState(samples=samples), forward, *args, **kwargs)
    size, outputs = size_of(samples), []
    for name, indices in samples.items():
        rows, named = take((args, kwargs), indices, size)
        state = PassState(samples={name: torch.arange(len(indices))})
        outputs.append(forward_pass.run(state, forward, *rows, **named))
    return join(outputs, list(samples.values()), "output")


def check_size(samples: Samples, args: tuple, kwargs: dict[str, Any]) -> None:
    """Raise ValueError unless the arguments are of a batch with these samples."""
    expected = size_of(samples)
    sizes = {len(value) for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor) and value.dim()}
    if expected not in sizes:
        raise ValueError(
            f"Length of `adapter_names` should be the same as the number of inputs, but got {expected} names for a "
            f"batch of {', '.join(map(str, sorted(sizes))) or 'no'} samples. Give one name for each sample."
        )


def size_of(samples: Samples) -> int:
    """Return the size of a batch with these samples."""
    return sum(map(len, samples.values()))


def _fit_together(model: nn.Module, adapter_names: list[str]) -> bool:
    """Whether one forward pass can serve all of these adapters."""
    for module in model.modules():
        if isinstance(module, HookedTunerLayer):
            if not module.can_mix(adapter_names):
                return False
        elif isinstance(module, BaseTunerLayer):
            return False
        elif isinstance(module, AuxiliaryTrainingWrapper) and isinstance(module.original_module, LayerWeights):
            return False  # one set of weights for the whole batch
    return True


def _check(model: nn.Module, adapter_names: list[str]) -> None:
    if model.training:
        raise ValueError(
            "Cannot pass `adapter_names` when the model is in training mode. Call model.eval() first: a different "
            "adapter for each sample of a batch is for inference."
        )
    known = {BASE}
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            known |= adapter_names_of(module)
        elif isinstance(module, AuxiliaryTrainingWrapper):
            known |= adapters_of(module)
    unknown = sorted({str(name) for name in adapter_names if not isinstance(name, str) or name not in known})
    if unknown:
        raise ValueError(
            f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}. `adapter_names` must name adapters of "
            f"the model: {', '.join(map(repr, sorted(known - {BASE})))}; {BASE!r} is the base model."
        )

"""A different adapter, with its own head, for each sample of a batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ..heads.weighted_layer_sum import LayerWeights
from ..upstream.peft_modules import adapter_names as adapter_names_of
from ..upstream.peft_modules import adapters_of, trained_modules
from ..utils.forward_pass import ForwardPass, PassState, Samples
from .samples import join, samples_by_adapter, take
from .tuner_layer import HookedTunerLayer


BASE = "__base__"  # PEFT's name for "no adapter" in a mixed batch


class Request(NamedTuple):
    """What `adapter_names` asks of the calls of a model.

    Attributes:
        samples: the samples of each adapter.
        together: whether one pass serves all of them.
        decodes_together: whether one pass of the decoder serves all of them, on what the encoder gave.
        repeats: how many rows `generate` may make of each sample, as with beam search.
    """

    samples: Samples
    together: bool
    decodes_together: bool
    repeats: Collection[int]


@contextmanager
def mixed_batch(model: nn.Module, adapter_names: Sequence[str], repeats: Collection[int] = ()) -> Iterator[None]:
    """Within, a call of `model` by this thread gives each sample the adapter of that name, "__base__" for none.

    The backbone runs once, and every adapter on its own samples. Where that cannot be, because the adapters have
    different numbers of prompts or weight the layers differently, the samples of each adapter run through the model on
    their own; the loss is the mean over all samples either way.

    Args:
        model: the base model with adapters on it, in evaluation mode.
        adapter_names: one name for each sample.
        repeats: how many rows `generate` may make of each sample.

    Raises:
        ValueError: if the model is in training mode, a name is unknown, or (when called) the batch has another size.
    """
    adapter_names = list(adapter_names)
    _check(model, adapter_names)
    samples, forward_pass = samples_by_adapter(adapter_names), ForwardPass.of(model)
    before, num_claims = forward_pass.request, len(forward_pass.claims)
    together, decodes_together = _fit_together(model, list(samples)), _decode_together(model, list(samples))
    forward_pass.request = Request(samples, together, decodes_together, repeats)
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
    samples, is_decoding = request.samples, kwargs.get("encoder_outputs") is not None
    if request.repeats:
        samples = _repeated(samples, _batch_size(args, kwargs) // size_of(samples), request.repeats)
    check_size(samples, args, kwargs)
    if request.together or (is_decoding and request.decodes_together):
        return forward_pass.run(PassState(samples=samples), forward, *args, **kwargs)
    if kwargs.get("past_key_values") is not None:
        raise ValueError(
            "Adapters with different numbers of prompts, and prompts or trained modules in the decoder, cannot share a "
            "key/value cache. Call generate for each adapter by itself, or with use_cache=False."
        )
    size, outputs = size_of(samples), []
    for name, indices in samples.items():
        rows, named = take((args, kwargs), indices, size)
        state = PassState(samples={name: torch.arange(len(indices))})
        outputs.append(forward_pass.run(state, forward, *rows, **named))
    return join(outputs, list(samples.values()), "output")


def _repeated(samples: Samples, times: int, allowed: Collection[int]) -> Samples:
    """Return the samples of a batch in which each row of the other stands so many times, one behind the other."""
    if times not in allowed:
        return samples
    rows = torch.arange(times)
    return {name: (indices[:, None] * times + rows).flatten() for name, indices in samples.items()}


def _batch_size(args: tuple, kwargs: dict[str, Any]) -> int:
    tokens = kwargs.get("decoder_input_ids")
    inputs = (value for value in (tokens, *args, *kwargs.values()) if isinstance(value, torch.Tensor) and value.dim())
    return next(map(len, inputs), 0)


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


def _decode_together(model: nn.Module, adapter_names: list[str]) -> bool:
    """Whether one pass of the decoder can serve all of these adapters."""
    has_trained_modules = any(True for _ in trained_modules(model))
    layers = (module for module in model.modules() if isinstance(module, HookedTunerLayer))
    return not has_trained_modules and all(layer.can_mix(adapter_names) for layer in layers if layer.is_in_decoder)


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

"""Whether a row of the table of backbones holds on a model: adapters are put on it for a moment, on made-up inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..backbones.spec import Backbone
from ..backbones.table import is_to_check, locate, remember_checked
from ..modules import Bottleneck, EmbeddingPrompt
from ..upstream.torch_tensors import is_sharded
from ..utils.forward_pass import ForwardPass
from ..utils.undisturbed import undisturbed
from .adapter_parts import AdapterParts, Wiring
from .calls import Call, parameter_names
from .encoder_layer import EncoderTunerLayer
from .hidden_tokens import attention_output, form_of_mask, tokens_of
from .made_up_inputs import Runnable, made_up_inputs, run, takes_mask


PREFIX, ADAPTER = "row_check_", "row_check"
NUM_PROMPTS, WIDTH = 3, 4
# Differences relative to the largest number that count as none, by dtype.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
LOW_PRECISION = 5e-2

Parts = Callable[[Backbone], AdapterParts]


def check_row_once(model: nn.Module, backbone: Backbone) -> None:
    """Check the row of a registered model type, unless it was checked before.

    The model is left as it was. Where no inputs are found that it takes, a warning says so.

    Raises:
        ValueError: if the row claims what does not hold on this model, with what was seen.
    """
    without_values = any(parameter.is_meta or is_sharded(parameter) for parameter in model.parameters())
    if without_values or not is_to_check(backbone):
        return
    with undisturbed(model):
        model.eval()
        torch.manual_seed(0)
        runnable = made_up_inputs(model, backbone)
        problems = [] if runnable is None else RowCheck(model, backbone, runnable).problems()
    if runnable is None:
        warnings.warn(
            f"The EncoderSpec of model type {backbone.model_type!r} could not be checked: no inputs were found that "
            f"{type(model).__name__} takes. Name some with EncoderSpec(..., example_inputs=lambda config, num_clips: "
            "{...}).",
            stacklevel=2,
        )
        return
    if problems:
        raise ValueError(
            f"The EncoderSpec of model type {backbone.model_type!r} does not hold on {type(model).__name__}:\n  "
            + "\n  ".join(problems)
        )
    remember_checked(backbone)


class RowCheck:
    """The checks of one row on one model, in evaluation mode.

    Args:
        model: without adapters.
        backbone: the model with its places found, by the row.
        runnable: inputs for it.
    """

    def __init__(self, model: nn.Module, backbone: Backbone, runnable: Runnable) -> None:
        self.model = model
        self.backbone = backbone
        self.runnable = runnable
        parameter = next(p for p in model.parameters() if p.is_floating_point())
        self.tolerance = TOLERANCE.get(parameter.dtype, LOW_PRECISION)
        with torch.no_grad():
            self.base = run(runnable, self._layers())

    def problems(self) -> list[str]:
        """Return what does not hold, and the way out of each; empty where all does."""
        checks = (
            self.prompts_act,
            self.prompts_as_keys_equal_prompts_in_front,
            self.attention_gets_no_positions,
            self.adapters_reach_the_layers_named,
            self.clips_stay_apart,
            self.unread_tokens_are_not_read,
            self.padding_is_hidden,
        )
        found: list[str] = []
        for check in checks:
            try:
                found += check()
            except Exception as error:
                found.append(f"{check.__name__}: {type(error).__name__}: {error}")
        return found

    # ---- the checks ----------------------------------------------------------------------------------------------

    def prompts_act(self) -> Iterator[str]:
        """Prompts change what every layer gives, get a gradient, and show in no hidden state."""
        with self._adapted(prompts) as tuner_layers, torch.enable_grad():
            outputs = run(self.runnable, tuner_layers)
            parameters = [next(layer.part("prompt")[ADAPTER].parameters()) for layer in tuner_layers]
            gradients = torch.autograd.grad(outputs.output.float().square().sum(), parameters, allow_unused=True)
        if [t.shape for t in outputs.left] != [t.shape for t in self.base.left]:
            yield (
                f"with prompts, encoder layers give {[tuple(t.shape) for t in outputs.left]}, without "
                f"{[tuple(t.shape) for t in self.base.left]}: is `attention` the self-attention module?"
            )
        silent = [index for index, grad in enumerate(gradients) if grad is None or not grad.abs().max() > 0]
        if silent:
            yield (
                f"the prompts of encoder layers {silent} get a gradient of 0: attention does not read what stands in "
                "front of its tokens. Do the layers take (tokens, batch, d)? Then say batch_first=False."
            )
        elif self._same(outputs.output, self.base.output):
            yield "prompts do not change the output"

    def prompts_as_keys_equal_prompts_in_front(self) -> Iterator[str]:
        """Prompts that are keys and values only give what prompts in front of the tokens give."""
        if self.backbone.spec.keys_and_values is None:
            return
        with self._adapted(prompts) as tuner_layers:
            as_keys = run(self.runnable, tuner_layers)
            for layer in tuner_layers:
                layer.put_prompts_in_front()
            in_front = run(self.runnable, tuner_layers)
        if not self._same(as_keys.output, in_front.output):
            yield (
                f"prompts as keys and values differ by {_difference(as_keys.output, in_front.output):.2g} from prompts "
                "in front of the tokens: something lies between `keys_and_values` and attention (rotary embedding, "
                "norm of keys). Leave keys_and_values out."
            )

    def attention_gets_no_positions(self) -> Iterator[str]:
        """Where no rule for positions is given, attention with prompts that a mask hides gives what it gives without."""
        spec = self.backbone.spec
        if spec.keys_and_values is not None or spec.positions is not None:
            return
        attention = self.backbone.first_layer.attention
        plain = self._call_of(attention)
        with self._adapted(prompts, [0]):
            grown = self._call_of(attention)
        hide = form_of_mask(attention, spec, plain)
        if hide is None:
            return  # attention takes no mask, so nothing can be hidden from it
        expected = attention_output(attention, spec, plain)
        hidden = attention_output(attention, spec, grown, hide(tokens_of(spec, grown), NUM_PROMPTS))[:, NUM_PROMPTS:]
        if not self._same(hidden, expected):
            yield (
                "prompts that a mask hides change what attention gives by "
                f"{_difference(hidden, expected):.2g}: attention gets relative positions that were made for the tokens "
                "alone. Say how they grow: EncoderSpec(..., positions=PositionRule(...))."
            )

    def adapters_reach_the_layers_named(self) -> Iterator[str]:
        """An adapter on one layer changes what that layer gives, and nothing before."""
        for parts in (mlp_adapter, attention_adapter, convolutions):
            for index in {0, len(self.backbone.layer_names) - 1}:
                with self._adapted(parts, [index]):
                    outputs = run(self.runnable, self._layers())
                before = zip(outputs.entered[: index + 1], self.base.entered)
                if not all(self._same(ours, theirs) for ours, theirs in before):
                    yield f"{parts.__name__} on encoder layer {index} changes what enters it, or a layer before"
                if outputs.left[index].shape != self.base.left[index].shape:
                    yield f"{parts.__name__} changes the shape of what encoder layer {index} gives"
                elif self._same(outputs.left[index], self.base.left[index]):
                    yield f"{parts.__name__} on encoder layer {index} does not change what it gives"

    def clips_stay_apart(self) -> Iterator[str]:
        """Another clip in the batch changes nothing for a clip."""
        main = self.runnable.inputs[self.runnable.main]
        other = {**self.runnable.inputs, self.runnable.main: torch.cat([main[:1], main[1:].flip(-1) * 2 + 1])}
        for parts in (prompts, mlp_adapter, convolutions):
            with self._adapted(parts) as tuner_layers:
                first, second = run(self.runnable, tuner_layers), run(self.runnable, tuner_layers, other)
            if not self._same(first.output[:1], second.output[:1]):
                yield (
                    f"with {parts.__name__}, another clip in the batch changes a clip's output by "
                    f"{_difference(first.output[:1], second.output[:1]):.2g}. Do the layers take (tokens, batch, d)? "
                    "Then say batch_first=False."
                )

    def unread_tokens_are_not_read(self) -> Iterator[str]:
        """The output does not depend on the tokens that `read_tokens` says the head does not read."""
        num_tokens = self.backbone.spec.read_tokens
        if num_tokens is None or not self.backbone.head:
            return

        def scramble(module: nn.Module, args: tuple, output: Any) -> Any:
            tokens = output[0] if isinstance(output, tuple) else output
            noise = torch.cat([tokens[:, :num_tokens], torch.randn_like(tokens[:, num_tokens:])], dim=1)
            return (noise, *output[1:]) if isinstance(output, tuple) else noise

        handle = self._layers()[-1].register_forward_hook(scramble)
        try:
            outputs = run(self.runnable, [])
        finally:
            handle.remove()
        if not self._same(outputs.output, self.base.output):
            yield (
                f"the head reads more than the first {num_tokens} tokens: with others at random, the output differs by "
                f"{_difference(outputs.output, self.base.output):.2g}. Leave read_tokens out."
            )

    def padding_is_hidden(self) -> Iterator[str]:
        """A padded clip with its mask gives what the clip gives alone."""
        if not self.backbone.spec.hides_padding or not takes_mask(self.runnable.module):
            return
        name = self.runnable.main
        batch = self.runnable.inputs[name].clone()
        length = batch.shape[1]
        short = length * 5 // 8
        batch[1, short:] = 0
        mask = torch.ones(batch.shape[:2], dtype=torch.long, device=batch.device)
        mask[1, short:] = 0
        for parts in (prompts, convolutions):
            with self._adapted(parts) as tuner_layers:
                both = run(self.runnable, tuner_layers, {name: batch, "attention_mask": mask})
                alone = run(self.runnable, tuner_layers, {name: batch[1:, :short], "attention_mask": mask[1:, :short]})
            size = min(both.output.shape[1], alone.output.shape[1])
            padded, unpadded = both.output[1:, :size], alone.output[:, :size]
            if not self._same(padded, unpadded):
                yield (
                    f"with {parts.__name__}, padding changes a clip's output by {_difference(padded, unpadded):.2g}. "
                    "Leave hides_padding out, or name the mask with padding_mask."
                )

    # ---- adapters for a moment -----------------------------------------------------------------------------------

    @contextmanager
    def _adapted(self, parts: Parts, indices: Sequence[int] = ()) -> Iterator[list[EncoderTunerLayer]]:
        """Within, encoder layers have an adapter with random weights: all, or those at `indices`."""
        forward_pass, wrapped = ForwardPass(), []
        names = [self.backbone.layer_names[index] for index in indices] or list(self.backbone.layer_names)
        try:
            for name in names:
                layer = self.model.get_submodule(name)
                modules = locate(layer, self.backbone.spec)
                tuner_layer = EncoderTunerLayer(layer, modules, self.backbone, PREFIX, forward_pass)
                wrapped.append((name, tuner_layer))
                tuner_layer.update_layer(ADAPTER, parts(self.backbone))
                self._put(name, tuner_layer.eval())
            with torch.no_grad():
                yield [tuner_layer for _, tuner_layer in wrapped]
        finally:
            for name, tuner_layer in wrapped:
                tuner_layer.remove_hooks()
                self._put(name, tuner_layer.base_layer)

    def _call_of(self, attention: nn.Module) -> Call:
        """Return the call that attention gets in a run, after all hooks."""
        calls: list[Call] = []
        names = parameter_names(attention)
        handle = attention.register_forward_pre_hook(
            lambda module, args, kwargs: calls.append(Call(names, args, kwargs)), with_kwargs=True
        )
        try:
            run(self.runnable, [])
        finally:
            handle.remove()
        return calls[0]

    def _put(self, name: str, module: nn.Module) -> None:
        parent, _, last = name.rpartition(".")
        setattr(self.model.get_submodule(parent), last, module)

    def _layers(self) -> list[nn.Module]:
        return [self.model.get_submodule(name) for name in self.backbone.layer_names]

    def _same(self, first: torch.Tensor, second: torch.Tensor) -> bool:
        return first.shape == second.shape and _difference(first, second) <= self.tolerance


def prompts(backbone: Backbone) -> AdapterParts:
    """Return prompts large enough that a mistake shows."""
    return AdapterParts(prompt=EmbeddingPrompt(NUM_PROMPTS, backbone.hidden_size, bound=2.0))


def mlp_adapter(backbone: Backbone) -> AdapterParts:
    """Return an adapter beside the feed-forward block."""
    return AdapterParts(mlp_adapter=_bottleneck(backbone), mlp_wiring=Wiring("residual"))


def attention_adapter(backbone: Backbone) -> AdapterParts:
    """Return an adapter beside attention."""
    return AdapterParts(attention_adapter=_bottleneck(backbone), attention_wiring=Wiring("residual"))


def convolutions(backbone: Backbone) -> AdapterParts:
    """Return convolutions beside both blocks."""
    kernel = (3, 3) if backbone.patch_projection is not None else (1, 3)
    return AdapterParts(
        attention_adapter=_bottleneck(backbone, kernel=kernel),
        mlp_adapter=_bottleneck(backbone, kernel=kernel),
    )


def _bottleneck(backbone: Backbone, **options: Any) -> Bottleneck:
    return Bottleneck(backbone.hidden_size, WIDTH, nn.GELU(), init_weights=False, scaling=4.0, **options)


def _difference(first: torch.Tensor, second: torch.Tensor) -> float:
    first, second = first.detach().float(), second.detach().float()
    scale = second.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    difference = float((first - second).abs().max() / scale)
    return difference if difference == difference else float("inf")

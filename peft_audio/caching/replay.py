"""Running a model from cached states: what comes before the split point is replaced by stand-ins for the time of a pass.

The order of events for one batch of cached states:

1. `Replay.run`, around the model's forward pass, sees the shape of the main input and installs `StandIns`.
2. The modules before the split point return zeros, or their constants, without computing anything.
3. The module at the split point is given the states, and everything after it runs as always.
4. `Replay.run` removes the stand-ins, however the pass ended.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Optional

import torch
from torch import nn
from transformers import PreTrainedModel

from ..tuner.tuner_layer import with_first
from ..upstream.hooks import remove_hooks
from ..upstream.torch_modules import ABSENT, install_stand_in, is_replica, remove_stand_in
from ..upstream.transformers_models import is_checkpointed, is_checkpointed_outside
from ..utils.around import owners_of_wrappers, unwrap_forward, wrap_forward
from ..utils.forward_pass import ForwardPass
from .calls import argument_names, first_argument, is_input, with_first_argument
from .plan import Plan, Template, map_tensors


if TYPE_CHECKING:
    from .frozen_part import FrozenPart  # which runs the model, as the checks do, from here


# Held while stand-ins are in a model. Other threads that run it from states wait; from raw input, they run its own modules.
LOCK = threading.RLock()
OPTIONS = ("output_hidden_states", "output_attentions")


class StandIns:
    """What replaces the frozen part of a model in one forward pass.

    Args:
        model: the model.
        plan: how to run it from these states.
        states: `(batch, *plan.shape)`
    """

    def __init__(self, model: nn.Module, plan: Plan, states: torch.Tensor) -> None:
        self._model = model
        self.plan = plan
        self.states = states
        self.thread = threading.get_ident()
        self.has_reached_split_point = False
        self.is_suspended = False  # while the model is run within itself
        self._parts = dict(zip(plan.parts, states.split(list(plan.parts.values()), dim=1))) if plan.parts else {}
        self._made: dict[Template, torch.Tensor] = {}
        self._replaced: list[tuple[nn.Module, Any]] = []

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within, the frozen part computes nothing when this thread runs the model."""
        with LOCK:
            try:
                for path, trees in self.plan.outputs.items():
                    self._replace(self._model.get_submodule(path), self._outputs, path, trees, count())
                if self.plan.parts:
                    yield
                    return
                first_trained = self._model.get_submodule(self.plan.split_point.path)
                self._replace(first_trained, self._from_states, first_trained)
                yield
            finally:
                while self._replaced:
                    module, before = self._replaced.pop()
                    remove_stand_in(module, "forward", before)

    def _replace(self, module: nn.Module, forward: Callable[..., Any], *arguments: Any) -> None:
        own = module.forward
        stand_in = partial(self._run, own, partial(forward, own, *arguments))
        self._replaced.append((module, vars(module).get("forward", ABSENT)))  # first: what follows may be interrupted
        install_stand_in(module, "forward", stand_in)

    def _run(self, own: Callable[..., Any], forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # Other threads, calls of the model within this one, and whoever calls a module again after the split point, get
        # the module's own computation.
        is_other = self.has_reached_split_point or self.is_suspended or threading.get_ident() != self.thread
        return (own if is_other else forward)(*args, **kwargs)

    def _outputs(
        self, own: Callable[..., Any], path: str, trees: list[Any], calls: Iterator[int], *args: Any, **kwargs: Any
    ) -> Any:
        number = next(calls)
        if number >= len(trees):
            raise RuntimeError(
                f"{path!r} is called more often than when the states were computed. Call cache_frozen again."
            )
        output = map_tensors(self._tensor, trees[number])
        if path not in self._parts:
            return output
        self.has_reached_split_point = path == next(reversed(self._parts))
        return with_first(output, self._parts[path])

    def _from_states(self, own: Callable[..., Any], module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.has_reached_split_point = True
        stood_for = first_argument(args, kwargs)
        if stood_for is None or stood_for.shape != self.states.shape:
            raise RuntimeError(
                f"{self.plan.split_point.path!r} expects states of shape {getattr(stood_for, 'shape', None)}, got "
                f"{tuple(self.states.shape)}. Call cache_frozen again."
            )
        states = self.states
        if is_checkpointed(module):  # reentrant checkpointing gives no gradient where no input asks for one
            states = states.detach().requires_grad_()
        args, kwargs = with_first_argument(args, kwargs, states)
        return own(*args, **kwargs)

    def _tensor(self, template: Template) -> torch.Tensor:
        """Return a tensor for the template. Zeros are made once, because nothing reads them."""
        if template not in self._made:
            batch_size, device = len(self.states), self.states.device
            if template.constant is None:
                tensor = torch.zeros(template.shape(batch_size), dtype=template.dtype, device=device)
            else:
                constants = self.plan.constants
                with torch.inference_mode(False):  # they are kept, and training may come next
                    constants[template.constant] = constants[template.constant].to(device)
                tensor = constants[template.constant].repeat(template.repeats(batch_size))
            self._made[template] = tensor
        return self._made[template]


class Replay:
    """A wrapper around a model: a batch of cached states runs from the split point on, any other batch as always.

    Args:
        identity: tells these states from those of other models and other split points.
        frozen: what the states were computed by.
    """

    def __init__(self, identity: str, frozen: FrozenPart) -> None:
        self.identity = identity
        self.frozen = frozen
        self.plans: dict[tuple, Plan] = {}
        self.names: list[str] = []
        self.is_replaced = False

    @staticmethod
    def on(model: nn.Module) -> Optional[Replay]:
        """Return the one that is installed on the model."""
        return next((owner for owner in owners_of_wrappers(model) if isinstance(owner, Replay)), None)

    def install(self, model: PreTrainedModel, plan: Plan) -> None:
        """Put the wrapper around the model; those for other states are removed."""
        if Replay.on(model) is not self:
            Replay.remove(model)
            wrap_forward(model, self.run)
            model.register_forward_pre_hook(self.refuse_replicas)
        self.frozen.accept(model)
        self.names = argument_names(model)
        self.plans[plan.key] = plan

    @staticmethod
    def remove(model: nn.Module) -> None:
        """Take the wrapper off the model, whichever states it is for."""
        remove_hooks(model, Replay)
        for replay in unwrap_forward(model, Replay):
            replay.is_replaced = True

    def refuse_replicas(self, model: nn.Module, args: tuple) -> None:
        """Forward pre-hook of the model: refuses the copies of it that torch.nn.DataParallel makes."""
        if is_replica(model):
            raise RuntimeError(
                "Cached states do not run in torch.nn.DataParallel, which the Trainer takes where one process sees "
                "several GPUs. Start one process per GPU instead, `torchrun --nproc_per_node NUM_GPUS train.py`."
            )

    def run(self, forward: Callable[..., Any], model: PreTrainedModel, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run the model, from cached states if it is given a batch of them."""
        forward_pass = ForwardPass.of(model)
        outer = forward_pass.cached_call
        if outer is not None:
            outer.is_suspended = True
        try:
            return self._run(forward_pass, forward, model, args, kwargs)
        finally:
            forward_pass.cached_call = outer
            if outer is not None:
                outer.is_suspended = False

    def _run(
        self,
        forward_pass: ForwardPass,
        forward: Callable[..., Any],
        model: PreTrainedModel,
        args: tuple,
        kwargs: dict[str, Any],
    ) -> Any:
        forward_pass.cached_call = None
        plan = next(iter(self.plans.values()))
        given = dict(zip(self.names, args)) | kwargs
        states = given.get(plan.main)
        if not isinstance(states, torch.Tensor) or states.dim() <= len(plan.raw_shape) + 1:
            return forward(*args, **kwargs)
        plan = self._plan_for(states, given)
        self.frozen.check(model)
        _check_checkpointing(model, plan.split_point.path)
        check_options(model, given)
        if forward_pass.current.samples is not None:
            raise RuntimeError(
                "Cached states cannot be used with `adapter_names` (a different adapter for each sample), which were not "
                "known when the states were computed. Give the model raw input there."
            )
        nothing = torch.zeros((), dtype=plan.raw_dtype, device=states.device)
        batch_size = len(states)
        stand_ins = StandIns(model, plan, states.reshape(batch_size, *plan.shape))
        with stand_ins.installed():
            forward_pass.cached_call = stand_ins
            output = forward(**{**given, plan.main: nothing.expand(batch_size, *plan.raw_shape)})
        if not stand_ins.has_reached_split_point:
            raise RuntimeError(
                f"{plan.split_point.path!r} did not run, so the cached states were not used: layers are left out at "
                "random. Set layerdrop (Whisper: encoder_layerdrop) to 0 in the model's configuration."
            )
        return output

    def _plan_for(self, states: torch.Tensor, given: dict[str, Any]) -> Plan:
        others = {
            name: tuple(value.shape[1:])
            for name, value in given.items()
            if isinstance(value, torch.Tensor) and name in self.names and is_input(name)
        }
        shape = others.pop(next(iter(self.plans.values())).main)
        plan = self.plans.get((shape, tuple(sorted(others.items()))))
        if plan is None or plan.dtype != states.dtype:
            known = [f"{plan.dtype} {plan.packed_shape} with {plan.shapes}" for plan in self.plans.values()]
            raise RuntimeError(
                f"These cached states, {states.dtype} {shape} with {others}, are not of this model and split point, or "
                f"the other inputs differ from those at caching, which were: {'; '.join(known)}. Call cache_frozen with "
                "this model and give the model what the cached data set gives."
            )
        return plan


def _check_checkpointing(model: nn.Module, path: str) -> None:
    # There, checkpointing goes around what stands for the module's `forward`, and keeps zeros for the backward pass.
    if is_checkpointed_outside(model.get_submodule(path)):
        raise RuntimeError(
            f"In transformers before 5.23, gradient checkpointing of {path!r} cannot be used with cached states. Turn it "
            "off: the frozen part keeps nothing for the backward pass."
        )


def check_options(model: nn.Module, given: dict[str, Any], error: type[Exception] = RuntimeError) -> None:
    """Check that neither these arguments nor the model's configuration ask for outputs of the frozen part.

    Args:
        model: the model.
        given: its arguments by name.
        error: type of the error.

    Raises:
        RuntimeError: they do. It is of type `error` if another is named.
    """
    for option in OPTIONS:
        value = given.get(option)
        if getattr(model.config, option, False) if value is None else value:
            raise error(
                f"`{option}=True` asks for what the layers before the split point return, which do not run on cached "
                "states. Leave it out, or give the model raw input."
            )

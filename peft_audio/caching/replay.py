"""Running a model from cached states: what comes before the cut is replaced by stand-ins for the time of the call."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import count
from typing import Any, Optional

import torch
from torch import nn

from ..upstream.hooks import owners_of_hooks, remove_hooks
from ..utils.forward_pass import ForwardPass
from .plan import Plan, Template, map_tensors
from .split_point import first_argument, frozen_modules, is_adapted, with_first_argument


# Held while stand-ins are in a model: other threads that run it wait, or run its own modules.
LOCK = threading.RLock()
MISSING = object()
OPTIONS = ("output_hidden_states", "output_attentions")


class Call:
    """One forward pass from cached states: the stand-ins that it has put in."""

    def __init__(self, model: nn.Module, plan: Plan, states: torch.Tensor) -> None:
        self.plan = plan
        self.states = states
        self.thread = threading.get_ident()
        self.has_reached_cut = False
        self.has_ended = False
        self.made: dict[Template, torch.Tensor] = {}
        self.replaced: list[tuple[nn.Module, Any]] = []
        LOCK.acquire()
        try:
            for path, trees in plan.outputs.items():
                self._replace(model.get_submodule(path), self._stand_in, path, trees, count())
            cut = model.get_submodule(plan.cut.path)
            self._replace(cut, self._from_states, cut)
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Give the modules back their own computation; once is enough."""
        if self.has_ended:
            return
        self.has_ended = True
        while self.replaced:
            module, before = self.replaced.pop()
            if before is MISSING:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = before
        LOCK.release()

    def _replace(self, module: nn.Module, forward: Callable, *arguments: Any) -> None:
        own = module.forward
        self.replaced.append((module, vars(module).get("forward", MISSING)))
        vars(module)["forward"] = partial(self._run, own, partial(forward, own, *arguments))

    def _run(self, own: Callable, forward: Callable, *args: Any, **kwargs: Any) -> Any:
        # Other threads, and whoever asks a module again after the cut, get the real thing.
        is_over = self.has_reached_cut or threading.get_ident() != self.thread
        return (own if is_over else forward)(*args, **kwargs)

    def _stand_in(self, own: Callable, path: str, trees: list[Any], calls: Iterator[int], *args: Any, **kwargs: Any):
        number = next(calls)
        if number >= len(trees):
            raise RuntimeError(f"{path!r} is called more often than when the states were computed.")
        return map_tensors(self._tensor, trees[number])

    def _from_states(self, own: Callable, cut: nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.has_reached_cut = True
        stood_for = first_argument(args, kwargs)
        if stood_for is None or stood_for.shape != self.states.shape:
            raise RuntimeError(
                f"{self.plan.cut.path!r} expects states of shape {getattr(stood_for, 'shape', None)}, got "
                f"{tuple(self.states.shape)}. Call cache_frozen again."
            )
        states = self.states
        if _checkpoints(cut):  # reentrant checkpointing gives no gradient where no input asks for one
            states = states.detach().requires_grad_()
        args, kwargs = with_first_argument(args, kwargs, states)
        return own(*args, **kwargs)

    def _tensor(self, template: Template) -> torch.Tensor:
        """Return what stands for a tensor: nobody reads the zeros, so they are made once."""
        if template not in self.made:
            batch_size, device = len(self.states), self.states.device
            if template.constant is None:
                shape = [size * times for (size, _), times in zip(template.sizes, template.times(batch_size))]
                self.made[template] = torch.zeros(shape, dtype=template.dtype, device=device)
            else:
                constants = self.plan.constants
                constants[template.constant] = constants[template.constant].to(device)
                self.made[template] = constants[template.constant].repeat(template.times(batch_size))
        return self.made[template]


def _checkpoints(module: nn.Module) -> bool:
    return bool(getattr(module, "gradient_checkpointing", False)) and module.training and torch.is_grad_enabled()


def _check_checkpointing(cut: nn.Module, path: str) -> None:
    # There, checkpointing goes around what stands for the module's `forward`, and keeps zeros for the backward pass.
    if _checkpoints(cut) and type(cut).__call__ is not nn.Module.__call__:
        raise RuntimeError(
            f"In transformers before 5.23, gradient checkpointing of {path!r} cannot be used with cached states. Turn it "
            "off: the frozen part keeps nothing for the backward pass."
        )


class Replay:
    """Two hooks on a model: a batch of cached states runs from the cut on, any other batch as always.

    Args:
        identity: tells these states from those of other models and other cuts.
        digest: of the frozen tensors, as `digest_of` made it.
        digest_of: makes it again, from the model and `Cut.after`.
    """

    def __init__(self, identity: str, digest: str, digest_of: Callable[[nn.Module, Collection[str]], str]) -> None:
        self.identity = identity
        self.digest = digest
        self.digest_of = digest_of
        self.stamp: list[tuple[int, int]] = []
        self.plans: dict[tuple, Plan] = {}
        self.names: list[str] = []
        self.is_replaced = False

    @staticmethod
    def on(model: nn.Module) -> Optional[Replay]:
        """Return the one that is attached to the model."""
        return next((owner for owner in owners_of_hooks(model) if isinstance(owner, Replay)), None)

    def attach(self, model: nn.Module, plan: Plan) -> None:
        """Put the hooks on the model, whose frozen part has the `digest` now; those of another cut leave it."""
        if Replay.on(model) is not self:
            _detach(model)
            model.register_forward_pre_hook(self.enter, with_kwargs=True)
            model.register_forward_hook(self.leave, always_call=True)
        self.names = argument_names(model)
        self.stamp = _stamp(model, plan)
        self.plans[plan.key] = plan

    def enter(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Optional[tuple[tuple, dict[str, Any]]]:
        """Forward pre-hook of the model."""
        calls = ForwardPass.of(model).cached_calls
        if calls and calls[-1] is not None:
            calls[-1].end()  # it was interrupted by hand; or the model is run within itself, which `leave` will tell
        calls.append(None)
        plan = next(iter(self.plans.values()))
        given = dict(zip(self.names, args)) | kwargs
        states = given.get(plan.main)
        if not isinstance(states, torch.Tensor) or states.dim() <= len(plan.raw_shape) + 1:
            return None
        plan = self._plan_for(states, given)
        self._check_unchanged(model, plan)
        _check_checkpointing(model.get_submodule(plan.cut.path), plan.cut.path)
        check_options(model, given)
        batch_size = len(states)
        calls[-1] = Call(model, plan, states.reshape(batch_size, *plan.shape))
        nothing = torch.zeros((), dtype=plan.raw_dtype, device=states.device)
        return (), {**given, plan.main: nothing.expand(batch_size, *plan.raw_shape)}

    def leave(self, model: nn.Module, args: tuple, output: Any) -> None:
        """Forward hook of the model, called after errors too."""
        calls = ForwardPass.of(model).cached_calls
        call = calls.pop() if calls else None
        if call is None:
            return
        has_ended = call.has_ended
        call.end()
        if output is not None and has_ended:
            raise RuntimeError(
                "Cached states cannot be used where the model is run several times within one call, as `adapter_names` "
                "(a different adapter for each sample) does. Give the model raw input there."
            )
        if output is not None and not call.has_reached_cut:
            raise RuntimeError(
                f"{call.plan.cut.path!r} did not run, so the cached states were not used: layers are left out at random. "
                "Set layerdrop (Whisper: encoder_layerdrop) to 0 in the model's configuration."
            )

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
                f"These cached states, {states.dtype} {shape} with {others}, are not of this model and cut, or the other "
                f"inputs differ from those at caching, which were: {'; '.join(known)}. Call cache_frozen with this model "
                "and give the model what the cached data set gives."
            )
        return plan

    def _check_unchanged(self, model: nn.Module, plan: Plan) -> None:
        if getattr(model, "_is_replica", False):
            raise RuntimeError(
                "Cached states do not run in torch.nn.DataParallel, which the Trainer takes where one process sees "
                "several GPUs. Start one process per GPU instead, `torchrun --nproc_per_node NUM_GPUS train.py`."
            )
        stamp = _stamp(model, plan)
        if self.stamp == stamp:
            return
        # Moving a model to a device, or loading its own weights again, changes the stamp and no value.
        if self.digest_of(model, plan.cut.after) != self.digest:
            raise RuntimeError(
                f"Weights of the frozen part of {type(model).__name__} (before {plan.cut.path!r}) have changed since "
                "the states were computed. Call cache_frozen again."
            )
        self.stamp = stamp


def _stamp(model: nn.Module, plan: Plan) -> list[tuple[int, int]]:
    """Return what changes when a frozen parameter does.

    Raises:
        RuntimeError: if something trains there.
    """
    stamp = []
    for path, module in frozen_modules(model, plan.cut.after):
        parameters = [parameter for parameter in module._parameters.values() if parameter is not None]
        if is_adapted(module) or any(parameter.requires_grad for parameter in parameters):
            raise RuntimeError(
                f"{path!r} trains now, or has an active adapter, and runs before {plan.cut.path!r}, where the cached "
                "states go in. Freeze it, or call cache_frozen again."
            )
        stamp += [(parameter.data_ptr(), parameter._version) for parameter in parameters]
    return stamp


def _detach(model: nn.Module) -> None:
    for replay in remove_hooks(model, Replay):
        replay.is_replaced = True


def check_options(model: nn.Module, given: dict[str, Any], error: type[Exception] = RuntimeError) -> None:
    """Raise an error if these arguments, or the model's configuration, ask for outputs of the frozen part."""
    for option in OPTIONS:
        value = given.get(option)
        if getattr(model.config, option, False) if value is None else value:
            raise error(
                f"`{option}=True` asks for what the layers before the cut give, which do not run on cached states. "
                "Leave it out, or give the model raw input."
            )


def argument_names(model: nn.Module) -> list[str]:
    """Return the names of the model's arguments, without those of `**kwargs`."""
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [name for name, p in inspect.signature(model.forward).parameters.items() if p.kind not in variable]


def is_input(name: str) -> bool:
    """Whether an argument of this name may reach the frozen part: labels do not."""
    return "label" not in name

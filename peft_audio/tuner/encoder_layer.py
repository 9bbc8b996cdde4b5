"""The tuner layer around one encoder layer: it owns what every adapter trains there, and the hooks that apply it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Optional

import torch
from torch import nn

from ..backbones.spec import Backbone, LayerModules
from ..modules import TokenLayout
from .adapter_parts import PARTS, AdapterParts, BlockInput, LayerPass, Wiring
from .attention import ExtraTokens, keep_out, let_in, takes_extra_keys
from .masks import grow_mask, real_tokens
from .tuner_layer import HookedTunerLayer, first_tensor, with_first


class EncoderTunerLayer(HookedTunerLayer):
    """Wraps one encoder layer and adapts it through hooks on the modules inside.

    Active adapters add up: their prompts stand side by side, the outputs of their other parts are summed.

    Args:
        base_layer: the encoder layer.
        modules: its modules that the hooks go on.
        backbone: the model that it is part of.
        prefix: prefix of the tuner type, which PEFT recognises its parameters by.
    """

    parts = PARTS
    other_param_names = ("attention_wiring", "mlp_wiring")

    def __init__(self, base_layer: nn.Module, modules: LayerModules, backbone: Backbone, prefix: str) -> None:
        super().__init__(base_layer, prefix)
        self.attention_wiring: dict[str, Wiring] = {}
        self.mlp_wiring: dict[str, Wiring] = {}
        self._positions = backbone.spec.positions
        self._attention_parameters = tuple(inspect.signature(modules.attention.forward).parameters)
        # Kept in a tuple so that they are not registered a second time, as children of this layer.
        self._foreign_modules = (modules.attention, modules.attention_norm, backbone.position_source)
        self._takes_extra_keys = takes_extra_keys(modules.attention)
        if self._takes_extra_keys:
            let_in(modules.attention)
        # How activations are saved for the backward pass: a context, from the layer's input.
        self.saving: Optional[Callable[[torch.Tensor], AbstractContextManager]] = None
        self._pass = LayerPass()
        self._last_grid: Optional[tuple[int, int]] = None
        self._hooks = tuple(self._attach(modules, backbone.patch_projection))

    def update_layer(self, adapter_name: str, modules: AdapterParts, inference_mode: bool = False) -> None:
        self.attention_wiring[adapter_name] = modules.attention_wiring
        self.mlp_wiring[adapter_name] = modules.mlp_wiring
        super().update_layer(adapter_name, modules, inference_mode)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the base layer, `(batch, tokens, hidden_size)` to the same shape, with what the hooks add to it.

        Where it is known that only the first tokens' output is read (`read_only`), that is all there is.
        """
        num_read, self._pass.num_read = self._pass.num_read, None
        if num_read is not None and self._can_leave_out(args, kwargs):
            hidden_states, self._pass.unread = hidden_states[:, :num_read], hidden_states[:, num_read:]
        elif self._is_checkpointed and torch.is_grad_enabled() and not hidden_states.requires_grad:
            # Reentrant checkpointing gives no gradient at all, silently, where no input of the checkpointed layer asks
            # for one; the input of the first adapted layer of a frozen model does not.
            hidden_states = hidden_states.detach().requires_grad_()
        is_plain = self.saving is None or self._is_checkpointed or torch.compiler.is_compiling()
        try:
            with nullcontext() if is_plain else self.saving(hidden_states):
                return self.base_layer(hidden_states, *args, **kwargs)
        finally:
            self._pass.unread = None

    def can_mix(self, adapter_names: list[str]) -> bool:
        prompts = self.part("prompt")
        return len({prompts[name].num_tokens if name in prompts else 0 for name in adapter_names}) == 1

    def read_only(self, num_tokens: Optional[int]) -> None:
        """Say that after this thread's next forward pass only the first tokens' output is read; None for all."""
        self._pass.num_read = num_tokens

    @property
    def _is_checkpointed(self) -> bool:
        return self.training and getattr(self.base_layer, "gradient_checkpointing", False)

    def _can_leave_out(self, args: tuple, kwargs: dict[str, Any]) -> bool:
        """Whether the layer gives the first tokens the same output where the others are keys and values alone."""
        if self.training and _may_run_again():
            return False  # and then nobody would say so
        active = [module for part in self.parts for _, module in self.active(part)]
        has_mask = any(isinstance(value, torch.Tensor) for value in (*args, *kwargs.values()))
        alone = all(getattr(module, "special_tokens_stand_alone", True) for module in active)
        return len(active) > 0 and alone and not has_mask and self._takes_extra_keys and not self._is_checkpointed

    def remove_hooks(self) -> None:
        super().remove_hooks()
        keep_out(self._foreign_modules[0])

    # ---- hooks, in the order in which they run -------------------------------------------------------------------

    def _attach(self, modules: LayerModules, patch_projection: Optional[nn.Module]):
        if patch_projection is not None:
            yield patch_projection.register_forward_hook(self._remember_grid)
        if modules.attention_norm is not None:
            yield modules.attention_norm.register_forward_hook(self._normalize_attention_input)
        yield modules.attention.register_forward_pre_hook(self._enter_attention, with_kwargs=True)
        yield modules.attention.register_forward_hook(self._leave_attention)
        yield modules.attention_output.register_forward_hook(self._adapt_attention)
        yield modules.feed_forward_norm.register_forward_hook(self._normalize_mlp_input)
        yield modules.feed_forward.register_forward_hook(self._adapt_mlp)

    def _remember_grid(self, module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        self._pass.grid = self._last_grid = (output.shape[-2], output.shape[-1])

    def _normalize_attention_input(self, module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        if self.active("attention_adapter"):
            self._pass.attention_residual = args[0]
        return self.by_adapter(self._own_norm("attention_norm"), args[0], output)

    def _enter_attention(self, module: nn.Module, args: tuple, kwargs: dict) -> Optional[tuple[tuple, dict]]:
        # The tokens come first in every attention module, whatever it calls them.
        tokens = self._argument(self._attention_parameters[0], args, kwargs)
        mask = self._argument("attention_mask", args, kwargs)
        if self.active("attention_adapter") or self.active("mlp_adapter"):
            self._pass.mask = mask
        if self.active("attention_adapter"):
            residual = tokens if self._pass.attention_residual is None else self._pass.attention_residual
            self._pass.attention_input, self._pass.attention_residual = BlockInput(residual, tokens), None
        extra = self._extra_tokens(tokens)
        self._pass.num_prompts = 0 if extra is None or extra.front is None else extra.front.shape[1]
        if extra is None:
            return None
        if self._takes_extra_keys:
            kwargs = {**kwargs, "extra_tokens": extra}
        arguments = dict(zip(self._attention_parameters, args)) | kwargs
        for name, value in self._with_prompts(tokens, extra.front, mask, arguments).items():
            args, kwargs = self._with_argument(name, value, args, kwargs)
        return args, kwargs

    def _leave_attention(self, module: nn.Module, args: tuple, output: Any) -> Any:
        num_prompts = self._pass.num_prompts
        if num_prompts == 0 or self._takes_extra_keys:
            return None
        output = with_first(output, first_tensor(output)[:, num_prompts:])
        has_more = self._positions is not None and self._positions.crop is not None
        return self._positions.crop(output, num_prompts) if has_more else output

    def _adapt_attention(self, module: nn.Module, args: tuple, output: Any) -> Any:
        block_input, self._pass.attention_input = self._pass.attention_input, None
        if block_input is None:
            return None
        return with_first(output, self._adapt_samples("attention", first_tensor(output), block_input))

    def _normalize_mlp_input(self, module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        output = self.by_adapter(self._own_norm("mlp_norm"), args[0], output)
        if self.active("mlp_adapter"):
            self._pass.mlp_input = BlockInput(args[0], output)
        return output

    def _adapt_mlp(self, module: nn.Module, args: tuple, output: torch.Tensor) -> Optional[torch.Tensor]:
        block_input, self._pass.mlp_input = self._pass.mlp_input, None
        return None if block_input is None else self._adapt_samples("mlp", output, block_input)

    # ---- adapters and norms --------------------------------------------------------------------------------------

    def _adapt_samples(self, block: str, output: torch.Tensor, block_input: BlockInput) -> torch.Tensor:
        neighbours_matter = any(adapter.reads_neighbours for _, adapter in self.active(f"{block}_adapter"))
        mask = real_tokens(self._pass.mask) if neighbours_matter else None
        return self.by_adapter(partial(self._adapt, block), output, *block_input, mask)

    def _adapt(
        self,
        block: str,
        output: torch.Tensor,
        residual: torch.Tensor,
        normalized: torch.Tensor,
        mask: Optional[torch.Tensor],
    ) -> torch.Tensor:
        adapters, wirings = self.active(f"{block}_adapter"), getattr(self, f"{block}_wiring")
        replacing = [name for name, _ in adapters if wirings[name].replace]
        if replacing and len(adapters) > 1:
            raise ValueError(
                f"Adapter {replacing[0]!r} takes the place of the output of every {block} block (placement='sequential' "
                f"without residual), so no other can be active with it, got {[name for name, _ in adapters]}. Activate "
                "one at a time."
            )
        layout = TokenLayout(self._grid(output.shape[1]), mask)
        sources = {"output": output, "residual": residual, "normalized": normalized}
        adapted = None if replacing else output
        for name, adapter in adapters:
            wiring = wirings[name]
            added = adapter(sources[wiring.input], layout)
            adapted = added if adapted is None else adapted + added
            if wiring.shortcut:
                adapted = adapted + sources[wiring.input]
        return adapted

    def _grid(self, num_tokens: int) -> tuple[int, int]:
        if self._pass.unread is not None:
            return (1, 0)  # only special tokens are left
        # Autograd runs a checkpointed layer again in a thread of its own, which no patch has passed through.
        return self._pass.grid or self._last_grid or (1, num_tokens)

    def _own_norm(self, part: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Return a function of hidden states and what the layer's norm makes of them, to what the adapter's makes."""

        def normalize(hidden_states: torch.Tensor, normalized: torch.Tensor) -> torch.Tensor:
            norms = self.active(part)
            if not norms:
                return normalized
            if len(norms) > 1:
                names = [name for name, _ in norms]
                raise ValueError(
                    f"Only one active adapter can bring layer norms of its own, got {names}. Activate one."
                )
            ((_, norm),) = norms
            return norm(hidden_states.to(norm.weight.dtype)).to(hidden_states.dtype)

        return normalize if self.active(part) else _second

    # ---- prompts -------------------------------------------------------------------------------------------------

    def _extra_tokens(self, tokens: torch.Tensor) -> Optional[ExtraTokens]:
        """Return what attention takes keys and values from beside the tokens that it is given, as it reads them."""
        if not self.active("prompt") and self._pass.unread is None:
            return None
        return ExtraTokens(*self.by_adapter(self._extra_rows, tokens, self._pass.unread))

    def _extra_rows(
        self, tokens: torch.Tensor, unread: Optional[torch.Tensor]
    ) -> tuple[Optional[torch.Tensor], Optional[torch.Tensor]]:
        batch_size = tokens.shape[0]  # `len` would make it a constant in exported programs
        rows = [self._as_attention_reads(prompt(batch_size), tokens.dtype) for _, prompt in self.active("prompt")]
        front = _side_by_side(rows) if rows else None
        return front, None if unread is None else self._as_attention_reads(unread, tokens.dtype)

    def _as_attention_reads(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        _, norm, _ = self._foreign_modules
        rows = rows.to(dtype)
        if norm is not None:
            # Attention's input arrives normalised in pre-norm layers, the prompt does not. Not by a call, which would
            # run the hooks that take the norm's input for the layer's.
            rows = self._own_norm("attention_norm")(rows, norm.forward(rows)).to(dtype)
        return rows

    def _with_prompts(
        self, tokens: torch.Tensor, rows: Optional[torch.Tensor], mask: Any, arguments: dict
    ) -> dict[str, Any]:
        """Return the arguments of attention that prompts change."""
        only_keys = self._takes_extra_keys
        num_prompts = 0 if rows is None else rows.shape[1]
        changed = {}
        if mask is not None:
            changed["attention_mask"] = grow_mask(mask, num_prompts, grow_queries=not only_keys)
        if only_keys:
            return changed
        attended = torch.cat([rows.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        changed[self._attention_parameters[0]] = attended
        if self._positions is not None:
            *_, source = self._foreign_modules
            changed |= self._positions.grow(source, attended, num_prompts, arguments)
        return changed

    def _argument(self, name: str, args: tuple, kwargs: dict) -> Any:
        positional = dict(zip(self._attention_parameters, args))
        return positional[name] if name in positional else kwargs.get(name)

    def _with_argument(self, name: str, value: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        positional = dict(zip(self._attention_parameters, args))
        if name in positional:
            return tuple({**positional, name: value}.values()), kwargs
        return args, {**kwargs, name: value}


def _may_run_again() -> bool:
    """Whether checkpointing around a layer may be what runs it: without gradient, or with hooks on saved tensors."""
    if torch.compiler.is_compiling():
        return False
    return not torch.is_grad_enabled() or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def _second(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return second


def _side_by_side(rows: list[torch.Tensor]) -> torch.Tensor:
    """Put the prompts of several adapters side by side: `(batch, ...)` if one of them differs between the samples."""
    if len(rows) == 1:
        return rows[0]
    batch_size = max(len(row) for row in rows)
    return torch.cat([row.expand(batch_size, -1, -1) for row in rows], dim=1)

"""The tuner layer around one encoder layer: it owns what every adapter trains there, and the hooks that apply it.

One forward pass, in the order of events (pre-norm; a post-norm layer has no norm before attention, and its norm before
the feed-forward block follows attention all the same):

1. The patch projection runs, on models with patches: `_remember_grid` keeps rows and columns.
2. `forward` is called with the tokens. In the last layer it leaves out the tokens that the head does not read.
3. The norm before attention: `_normalize_attention_input` keeps its input, and replaces its output where an adapter has
   a norm of its own.
4. Before attention: `_enter_attention` adds the prompts, and grows the mask and relative positions with them.
5. In attention, where prompts are keys and values only: `tuner/attention.py` projects them.
6. After attention: `_leave_attention` cuts the rows of prompts off, where they were in front of the tokens.
7. After the attention block: `_adapt_attention` applies the adapters there.
8. The norm before the feed-forward block: `_normalize_mlp_input` keeps its input and output.
9. After the feed-forward block: `_adapt_mlp` applies the adapters there.
10. The layer has run: `_go_beside` takes its output along the way beside the encoder (side_path.py).

What one of these leaves for another is a field of `PassState`, whose docstring says who writes and reads each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Optional

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..backbones.spec import Backbone, LayerModules
from ..modules import TokenLayout
from ..modules.adapter_module import reads_neighbors, special_tokens_stand_alone
from ..modules.prompts import side_by_side
from ..upstream.autograd import may_run_again
from ..utils.around import unwrap_forward, wrap_forward
from ..utils.forward_pass import BlockInput, ForwardPass, PassState
from .adapter_parts import ADAPTERS, AT_THE_END, BESIDE, PARTS, WITHIN, AdapterParts, Wiring, with_adapters
from .attention import ExtraTokens, install_extra_tokens, remove_extra_tokens, takes_extra_tokens
from .calls import Call, parameter_names
from .conventions import Conventions
from .grids import SeenGrids
from .masks import grow_mask, real_tokens, without_prompt_rows
from .side_path import SideCall, states_of_pass
from .tuner_layer import HookedTunerLayer, first_tensor, with_first


STATE = "peft_audio_state"  # the argument by which a base layer is given the state of its call
SavingContext = Callable[[torch.Tensor], AbstractContextManager]


class OutsideModules(NamedTuple):
    """Modules that a tuner layer uses and does not own. In a tuple, so that torch does not take them for children.

    Attributes:
        attention: the encoder layer's attention.
        attention_norm: its norm before attention, None in post-norm layers.
        position_source: the module that makes the model's relative positions, None without.
    """

    attention: nn.Module
    attention_norm: Optional[nn.Module]
    position_source: Optional[nn.Module]


class EncoderTunerLayer(HookedTunerLayer):
    """Wraps one encoder layer and adapts it through hooks on the modules inside.

    Active adapters add up: their prompts stand side by side, the outputs of their other parts are summed.

    Args:
        base_layer: the encoder layer.
        modules: its modules that the hooks go on.
        backbone: the model that it is part of.
        prefix: prefix of the tuner type, which PEFT recognizes its parameters by.
        forward_pass: the state of the model's forward passes.
    """

    parts = PARTS
    other_param_names = ("attention_wiring", "mlp_wiring")

    def __init__(
        self,
        base_layer: nn.Module,
        modules: LayerModules,
        backbone: Backbone,
        prefix: str,
        forward_pass: ForwardPass,
    ) -> None:
        super().__init__(base_layer, prefix, forward_pass)
        self.attention_wiring: dict[str, Wiring] = {}
        self.mlp_wiring: dict[str, Wiring] = {}
        self.in_features = self.out_features = backbone.hidden_size
        self.is_in_decoder = backbone.is_decoder
        spec = backbone.spec
        self._conventions = Conventions(spec.batch_first, spec.padding_mask, spec.positions, spec.read_tokens)
        self._outside = OutsideModules(modules.attention, modules.attention_norm, backbone.position_source)
        self._attention_parameters = parameter_names(modules.attention)
        self._layer_parameters = parameter_names(base_layer)[1:]  # behind the hidden states
        self._takes_extra_tokens = takes_extra_tokens(modules.attention, spec)
        if self._takes_extra_tokens:
            install_extra_tokens(modules.attention, spec, forward_pass)
        self._saving_context: Optional[SavingContext] = None
        self.num_read_tokens: Optional[int] = None
        self._grids = SeenGrids(backbone.patch_projection is not None)
        wrap_forward(base_layer, self._with_state)
        self._hooks = tuple(self._install_hooks(modules, backbone.patch_projection))

    def update_layer(self, adapter_name: str, modules: AdapterParts, inference_mode: bool = False) -> None:
        """See `HookedTunerLayer.update_layer`; `modules` are an `AdapterParts`."""
        self.attention_wiring[adapter_name] = modules.attention_wiring
        self.mlp_wiring[adapter_name] = modules.mlp_wiring
        super().update_layer(adapter_name, modules, inference_mode)

    def save_activations_with(self, context: Optional[SavingContext]) -> None:
        """Run the base layer within `context(hidden_states)`, which may change what is saved for the backward pass."""
        self._saving_context = context

    def set_read_tokens(self, num_tokens: Optional[int]) -> None:
        """Say how many tokens, the first ones, `ForwardPass.only_first_read` means; None for a layer it is not for."""
        self.num_read_tokens = num_tokens

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the base layer, with what the hooks add to it.

        Args:
            hidden_states: `(batch, tokens, hidden_size)`, or `(tokens, batch, hidden_size)` where the row says so.
            *args: further arguments of the base layer.
            **kwargs: further arguments of the base layer.

        Returns:
            What the base layer returns, of the same shape. Where only the first tokens are read, it has only those.
        """
        outer = self.forward_pass.current
        state = PassState(outer, outer.samples, outer.grid)
        if state.grid is not None and not self._is_traced:
            self._grids.note(self._batch_first(hidden_states).shape[1], state.grid)
        num_end = self._conventions.read_tokens if outer.only_first_read else None
        num_read = self._take_num_read(outer, args, kwargs)
        if num_read is not None:
            hidden_states, state.unread = hidden_states[:, :num_read], hidden_states[:, num_read:]
        elif self._is_checkpointed and torch.is_grad_enabled() and not (hidden_states.requires_grad or self.is_beside):
            # Reentrant checkpointing gives no gradient at all, silently, where no input of the checkpointed layer asks
            # for one; the input of the first adapted layer of a frozen model does not.
            hidden_states = hidden_states.detach().requires_grad_()
        if state.is_needed_again and not torch.compiler.is_compiling():
            kwargs[STATE] = state
        context = self._saving_context
        is_plain = context is None or self._is_checkpointed or torch.compiler.is_compiling()
        with nullcontext() if context is None or is_plain else context(hidden_states):
            output = self.forward_pass.run(state, self.base_layer, hidden_states, *args, **kwargs)
            is_passed = not any(self.active(part) for part in BESIDE)
            if is_passed:
                return output
            given = Call(self._layer_parameters, args, kwargs) if state.attention_mask is None else None
            mask = state.attention_mask if given is None else given.get(self._conventions.mask_name)
            return self._go_beside(output, mask, num_end)

    def _with_state(self, forward: Callable[..., Any], layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run the base layer in the state of its call, also when checkpointing runs it again."""
        state = kwargs.pop(STATE, None)
        if state is None or state is self.forward_pass.current:
            return forward(*args, **kwargs)
        return self.forward_pass.run(state.again(), forward, *args, **kwargs)

    def put_prompts_in_front(self) -> None:
        """Let prompts stand in front of attention's tokens, also where they could be keys and values only."""
        remove_extra_tokens(self._outside.attention)
        self._takes_extra_tokens = False

    def can_mix(self, adapter_names: list[str]) -> bool:
        """Whether the adapters have the same number of prompts here."""
        prompts = self.part("prompt")
        return len({prompts[name].num_tokens if name in prompts else 0 for name in adapter_names}) == 1

    @property
    def _is_checkpointed(self) -> bool:
        return self.training and bool(getattr(self.base_layer, "gradient_checkpointing", False))

    @property
    def is_beside(self) -> bool:
        """Whether active adapters are beside the layer alone, and what is within the layer is frozen."""
        is_within = not any(self.active(part) for part in BESIDE) or any(self.active(part) for part in WITHIN)
        return not is_within and not any(parameter.requires_grad for parameter in self.base_layer.parameters())

    @property
    def _is_traced(self) -> bool:
        return torch.compiler.is_compiling() or torch.jit.is_tracing()

    def _take_num_read(self, outer: PassState, args: tuple, kwargs: dict[str, Any]) -> Optional[int]:
        """Return the number of tokens that suffice, None for all."""
        if self.num_read_tokens is None:
            return None
        is_asked, outer.only_first_read = outer.only_first_read, False
        return self.num_read_tokens if is_asked and self._can_leave_out(args, kwargs) else None

    def _can_leave_out(self, args: tuple, kwargs: dict[str, Any]) -> bool:
        """Whether the layer gives the first tokens the same output where the others are keys and values alone."""
        if (self.training or torch.is_grad_enabled()) and may_run_again():
            return False  # the second time, nobody would set `only_first_read`
        is_active = any(self.active(part) for part in self.parts)
        has_mask = any(isinstance(value, torch.Tensor) for value in (*args, *kwargs.values()))
        alone = all(special_tokens_stand_alone(module) for part in ADAPTERS for _, module in self.active(part))
        can_attend = self._takes_extra_tokens and self._conventions.batch_first
        return is_active and alone and not has_mask and can_attend and not self._is_checkpointed

    def remove_hooks(self) -> None:
        """Give the base layer back as it was."""
        super().remove_hooks()
        unwrap_forward(self.base_layer, self)
        remove_extra_tokens(self._outside.attention)

    # ---- hooks, in the order in which they run -------------------------------------------------------------------

    def _install_hooks(
        self, modules: LayerModules, patch_projection: Optional[nn.Module]
    ) -> Iterator[RemovableHandle]:
        if patch_projection is not None:
            yield patch_projection.register_forward_hook(self._remember_grid)
        if modules.attention_norm is not None:
            yield modules.attention_norm.register_forward_hook(self._normalize_attention_input)
        yield modules.attention.register_forward_pre_hook(self._enter_attention, with_kwargs=True)
        # Before the hooks by which transformers collects attention maps.
        yield modules.attention.register_forward_hook(self._leave_attention, prepend=True)
        yield modules.attention_output.register_forward_hook(self._adapt_attention)
        yield modules.feed_forward_norm.register_forward_hook(self._normalize_mlp_input)
        yield modules.feed_forward.register_forward_hook(self._adapt_mlp)

    def _remember_grid(self, module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        self.forward_pass.current.grid = (output.shape[-2], output.shape[-1])

    def _normalize_attention_input(self, module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        residual = self._batch_first(args[0])
        if self.active("attention_adapter"):
            self.forward_pass.current.attention_residual = residual
        return self._batch_first(
            self.by_adapter(self._own_norm("attention_norm"), residual, self._batch_first(output))
        )

    def _enter_attention(self, module: nn.Module, args: tuple, kwargs: dict) -> Optional[tuple[tuple, dict]]:
        state, call = self.forward_pass.current, Call(self._attention_parameters, args, kwargs)
        # The tokens come first in every attention module, whatever it calls them.
        given = call.get(self._attention_parameters[0])
        tokens = self._batch_first(given)
        if any(self.active(part) for part in ADAPTERS):
            state.attention_mask = call.get(self._conventions.mask_name)
        if self.active("attention_adapter"):
            residual = tokens if state.attention_residual is None else state.attention_residual
            state.attention_input, state.attention_residual = BlockInput(residual, tokens), None
        extra = self._extra_tokens(tokens)
        state.num_prompts = 0 if extra is None or extra.front is None else extra.front.shape[1]
        state.extra_tokens_pending = extra is not None and self._takes_extra_tokens
        if extra is None:
            return None
        call = self._with_extra_tokens(call, given, tokens, extra)
        return call.args, call.kwargs

    def _leave_attention(self, module: nn.Module, args: tuple, output: Any) -> Any:
        state = self.forward_pass.current
        if state.extra_tokens_pending:
            raise RuntimeError(
                f"{type(module).__name__} has not used the prompts, which its row of the table of backbones makes keys "
                "and values only: it calls no function of transformers' AttentionInterface. Leave `keys_and_values` out "
                "of the EncoderSpec of this model type."
            )
        if state.num_prompts == 0 or self._takes_extra_tokens:
            return None
        output = without_prompt_rows(output, state.num_prompts)
        output = with_first(output, self._batch_first(self._batch_first(first_tensor(output))[:, state.num_prompts :]))
        rule = self._conventions.positions
        return output if rule is None or rule.crop is None else rule.crop(output, state.num_prompts)

    def _adapt_attention(self, module: nn.Module, args: tuple, output: Any) -> Any:
        state = self.forward_pass.current
        block_input, state.attention_input = state.attention_input, None
        if block_input is None:
            return None
        return with_first(output, self._adapt_samples("attention", first_tensor(output), block_input))

    def _normalize_mlp_input(self, module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        residual = self._batch_first(args[0])
        normalized = self.by_adapter(self._own_norm("mlp_norm"), residual, self._batch_first(output))
        if self.active("mlp_adapter"):
            self.forward_pass.current.mlp_input = BlockInput(residual, normalized)
        return self._batch_first(normalized)

    def _adapt_mlp(self, module: nn.Module, args: tuple, output: torch.Tensor) -> Optional[torch.Tensor]:
        state = self.forward_pass.current
        block_input, state.mlp_input = state.mlp_input, None
        return None if block_input is None else self._adapt_samples("mlp", output, block_input)

    # ---- adapters and norms --------------------------------------------------------------------------------------

    def _adapt_samples(self, block: str, output: torch.Tensor, block_input: BlockInput) -> torch.Tensor:
        is_mixing = any(reads_neighbors(adapter) for _, adapter in self.active(f"{block}_adapter"))
        output = self._batch_first(output)
        mask = self._real_tokens(self.forward_pass.current.attention_mask, output) if is_mixing else None
        grid, wirings = self._grid(output.shape[1], is_mixing), getattr(self, f"{block}_wiring")

        def adapt(mask: Optional[torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
            sources = dict(zip(("output", *BlockInput._fields), tensors))
            return with_adapters(block, self.active(f"{block}_adapter"), wirings, sources, TokenLayout(grid, mask))

        return self._batch_first(self.by_adapter(adapt, mask, output, *block_input))

    def _go_beside(self, output: Any, attention_mask: Any, num_read: Optional[int]) -> Any:
        """Return what the layer gives, with what the side networks add in the last one."""
        tokens = self._batch_first(first_tensor(output))
        is_mixing = any(reads_neighbors(module) for _, module in self.active("side"))
        mask = self._real_tokens(attention_mask, tokens) if is_mixing else None
        states = states_of_pass(self.forward_pass.current.side_states)
        call = SideCall(states, self._grid(tokens.shape[1], is_mixing), num_read)
        self.by_adapter(lambda *tensors: call.take_in(self.active("side"), *tensors), tokens, mask)
        if not self.active(AT_THE_END):
            return output
        tokens = tokens[:, : call.num_left(tokens)]
        tokens = self.by_adapter(lambda tensor: call.add(self.active(AT_THE_END), tensor), tokens)
        states.clear()
        return with_first(output, self._batch_first(tokens))

    def _real_tokens(self, attention_mask: Any, tokens: torch.Tensor) -> Optional[torch.Tensor]:
        return real_tokens(attention_mask, tokens.shape[0], self._conventions.true_is_padding)

    def _grid(self, num_tokens: int, is_mixing: bool) -> tuple[int, int]:
        state = self.forward_pass.current
        if state.unread is not None:
            return (1, 0)  # only special tokens are left
        if state.grid is not None or not is_mixing or self._is_traced:
            return state.grid or (1, num_tokens)
        return self._grids.of(num_tokens)

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
            dtype = next(norm.parameters()).dtype
            return norm(hidden_states.to(dtype)).to(hidden_states.dtype)

        return normalize if self.active(part) else lambda hidden_states, normalized: normalized

    # ---- prompts -------------------------------------------------------------------------------------------------

    def _extra_tokens(self, tokens: torch.Tensor) -> Optional[ExtraTokens]:
        """Return what attention takes keys and values from beside the tokens that it is given, as it reads them."""
        if not self.active("prompt") and self.forward_pass.current.unread is None:
            return None
        return ExtraTokens(*self.by_adapter(self._extra_rows, tokens, self.forward_pass.current.unread))

    def _extra_rows(
        self, tokens: torch.Tensor, unread: Optional[torch.Tensor]
    ) -> tuple[Optional[torch.Tensor], Optional[torch.Tensor]]:
        batch_size = tokens.shape[0]  # `len` would make it a constant in exported programs
        rows = [self._as_attention_reads(prompt(batch_size), tokens.dtype) for _, prompt in self.active("prompt")]
        front = side_by_side(rows) if rows else None
        return front, None if unread is None else self._as_attention_reads(unread, tokens.dtype)

    def _as_attention_reads(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        norm = self._outside.attention_norm
        rows = rows.to(dtype)
        if norm is not None:
            # Attention's input arrives normalized in pre-norm layers, the prompt does not. Not by a call, which would
            # run the hooks that take the norm's input for the layer's.
            rows = self._own_norm("attention_norm")(rows, norm.forward(rows)).to(dtype)
        return rows

    def _with_extra_tokens(self, call: Call, given: torch.Tensor, tokens: torch.Tensor, extra: ExtraTokens) -> Call:
        """Return the call of attention with the extra tokens, and all that grows with them."""
        only_keys, num_prompts = self._takes_extra_tokens, self.forward_pass.current.num_prompts
        mask = call.get(self._conventions.mask_name)
        if mask is not None:
            mask = grow_mask(mask, num_prompts, not only_keys, self._conventions.true_is_padding)
            call = call.replace(self._conventions.mask_name, mask)
        if only_keys:
            return call.replace("extra_tokens", extra)
        if extra.front is None:
            return call
        attended = torch.cat([extra.front.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        call = call.replace_object(given, self._batch_first(attended))
        rule = self._conventions.positions
        if rule is not None:
            grown = rule.grow(self._outside.position_source, attended, num_prompts, call.arguments)
            for name, value in grown.items():
                call = call.replace(name, value)
        return call

    # ---- the row's conventions -----------------------------------------------------------------------------------

    def _batch_first(self, tokens: torch.Tensor) -> torch.Tensor:
        """Turn `(tokens, batch, d)` into `(batch, tokens, d)` and back, where the base layer takes the former."""
        return tokens if self._conventions.batch_first else tokens.transpose(0, 1)

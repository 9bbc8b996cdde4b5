"""The tuner layer around one encoder layer: it owns what every adapter trains there, and the hooks that apply it."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple, Optional

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from .backbones import LayerModules
from .modules import EmbeddingPrompt


class AdapterParts(NamedTuple):
    """What one adapter adds to one encoder layer; None where it adds nothing.

    Attributes:
        prompt: tokens that take part in the layer's attention, as keys and values only.
        attention_adapter: `f` in `z + f(z)`, with z the output of attention.
        mlp_adapter: `f` in `MLP(LN(B)) + f(...)`, beside the feed-forward block.
        mlp_adapter_input: what `mlp_adapter` reads: "residual" for B, "normalized" for LN(B).
    """

    prompt: Optional[EmbeddingPrompt] = None
    attention_adapter: Optional[nn.Module] = None
    mlp_adapter: Optional[nn.Module] = None
    mlp_adapter_input: str = "normalized"


# The parts that hold parameters, in the order in which they act.
PARTS = ("prompt", "attention_adapter", "mlp_adapter")


class EncoderTunerLayer(nn.Module, BaseTunerLayer):
    """Wraps one encoder layer and adapts it through hooks on the modules inside.

    The parameters of part P of adapter A are found under `<prefix>P.A`. Active adapters add up: their prompts stand
    side by side, the outputs of their other parts are summed.

    Args:
        base_layer: the encoder layer.
        modules: its modules that the hooks go on.
        prefix: prefix of the tuner type, which PEFT recognises its parameters by.
    """

    other_param_names = ("mlp_adapter_input",)

    def __init__(self, base_layer: nn.Module, modules: LayerModules, prefix: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.prefix = prefix
        self.adapter_layer_names = tuple(prefix + part for part in PARTS)
        for name in self.adapter_layer_names:
            self.add_module(name, nn.ModuleDict())
        self.mlp_adapter_input: dict[str, str] = {}
        self._active_adapter = []
        self.merged_adapters = []
        self._mlp_adapter_output: Optional[torch.Tensor] = None
        self._attention_parameters = tuple(inspect.signature(modules.attention.forward).parameters)
        # Kept in a tuple so that they are not registered a second time, as children of this layer.
        self._attention_norm = (modules.attention_norm,)
        self._hooks = (
            modules.attention.register_forward_pre_hook(self._insert_prompts, with_kwargs=True),
            modules.attention.register_forward_hook(self._adapt_attention),
            modules.feed_forward_norm.register_forward_hook(self._run_mlp_adapters),
            modules.feed_forward.register_forward_hook(self._add_mlp_adapters),
        )

    def update_layer(self, adapter_name: str, parts: AdapterParts, inference_mode: bool = False) -> None:
        """Take in a new adapter; it becomes the active one if there was none."""
        for part in PARTS:
            module = getattr(parts, part)
            if module is not None:
                self._part(part)[adapter_name] = module
        self.mlp_adapter_input[adapter_name] = parts.mlp_adapter_input
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters or [adapter_name], inference_mode=inference_mode)

    def remove_hooks(self) -> None:
        """Give the base layer back as it was."""
        for hook in self._hooks:
            hook.remove()

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the base layer, `(batch, tokens, hidden_size)` to the same shape, with what the hooks add to it."""
        if self._checkpointing_needs_input_grad(hidden_states):
            hidden_states = hidden_states.detach().requires_grad_()
        return self.base_layer(hidden_states, *args, **kwargs)

    def _checkpointing_needs_input_grad(self, hidden_states: torch.Tensor) -> bool:
        # Reentrant checkpointing gives no gradient at all, silently, where no input of the checkpointed layer asks
        # for one; the input of the first adapted layer of a frozen model does not.
        return (
            torch.is_grad_enabled()
            and self.training
            and getattr(self.base_layer, "gradient_checkpointing", False)
            and not hidden_states.requires_grad
        )

    # ---- hooks, in the order in which they run -------------------------------------------------------------------

    def _insert_prompts(self, module: nn.Module, args: tuple, kwargs: dict) -> Optional[tuple[tuple, dict]]:
        prompts = self._active("prompt")
        if not prompts:
            return None
        # The tokens come first in every attention module, whatever it calls them.
        tokens_name = self._attention_parameters[0]
        hidden_states = self._argument(tokens_name, args, kwargs)
        rows = torch.cat([self._prompt_rows(prompt, hidden_states) for prompt in prompts], dim=1)
        with_prompts = torch.cat([rows, hidden_states], dim=1)
        mask = self._argument("attention_mask", args, kwargs)
        if mask is not None:
            mask = _grow_mask(mask, rows.shape[1], grow_queries=not self._takes_key_value_states)
            args, kwargs = self._with_argument("attention_mask", mask, args, kwargs)
        name = "key_value_states" if self._takes_key_value_states else tokens_name
        return self._with_argument(name, with_prompts, args, kwargs)

    def _adapt_attention(self, module: nn.Module, args: tuple, output: Any) -> Any:
        prompts, adapters = self._active("prompt"), self._active("attention_adapter")
        if not (prompts or adapters):
            return None
        hidden_states = output[0] if isinstance(output, tuple) else output
        if prompts and not self._takes_key_value_states:
            hidden_states = hidden_states[:, sum(prompt.num_tokens for _, prompt in prompts) :]
        adapted = hidden_states
        for _, adapter in adapters:
            adapted = adapted + adapter(hidden_states)
        return (adapted, *output[1:]) if isinstance(output, tuple) else adapted

    def _run_mlp_adapters(self, module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        adapters = self._active("mlp_adapter")
        if not adapters:
            return
        inputs = {"residual": args[0], "normalized": output}
        outputs = [adapter(inputs[self.mlp_adapter_input[name]]) for name, adapter in adapters]
        self._mlp_adapter_output = sum(outputs[1:], start=outputs[0])

    def _add_mlp_adapters(self, module: nn.Module, args: tuple, output: torch.Tensor) -> Optional[torch.Tensor]:
        if self._mlp_adapter_output is None:
            return None
        output, self._mlp_adapter_output = output + self._mlp_adapter_output, None
        return output

    # ---- helpers -------------------------------------------------------------------------------------------------

    def _part(self, part: str) -> nn.ModuleDict:
        return getattr(self, self.prefix + part)

    def _active(self, part: str) -> list[tuple[str, nn.Module]]:
        if self.disable_adapters:
            return []
        modules = self._part(part)
        return [(name, modules[name]) for name in self.active_adapters if name in modules]

    def _prompt_rows(self, prompt: tuple[str, EmbeddingPrompt], hidden_states: torch.Tensor) -> torch.Tensor:
        batch_size = hidden_states.shape[0]
        rows = prompt[1](batch_size).to(hidden_states.dtype)
        (norm,) = self._attention_norm
        if norm is not None:
            # Attention's input arrives normalised in pre-norm layers, the prompt does not.
            rows = norm(rows).to(hidden_states.dtype)
        return rows.expand(batch_size, -1, -1)

    @property
    def _takes_key_value_states(self) -> bool:
        return "key_value_states" in self._attention_parameters

    def _argument(self, name: str, args: tuple, kwargs: dict) -> Any:
        positional = dict(zip(self._attention_parameters, args))
        return positional[name] if name in positional else kwargs.get(name)

    def _with_argument(self, name: str, value: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        positional = dict(zip(self._attention_parameters, args))
        if name in positional:
            return tuple({**positional, name: value}.values()), kwargs
        return args, {**kwargs, name: value}

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module):
        # PEFT looks for `.weight`, which an encoder layer has not. Quantised weights are no floats, norms always are.
        for parameter in base_layer.parameters():
            if parameter.is_floating_point():
                return parameter.device, parameter.dtype
        return None, None

    def merge(self, safe_merge: bool = False, adapter_names: Optional[list[str]] = None) -> None:
        raise ValueError(MERGE_REFUSED)

    def unmerge(self) -> None:
        """Nothing to do: adapters of this kind are never merged."""

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return False


MERGE_REFUSED = (
    "These adapters cannot be merged into the base model: prompts and non-linear blocks are not a change of its "
    "weights. Use the model as it is, or `unload()` to get the base model back."
)


def _grow_mask(mask: Any, num_prompts: int, grow_queries: bool) -> torch.Tensor:
    """Let every token attend to `num_prompts` new tokens in front, in a mask of any of transformers' forms.

    Args:
        mask: `(batch, keys)` with 1 for a token and 0 for padding; or `(batch, heads, queries, keys)`, boolean
            with True for "attends" or additive with 0 for it.
        num_prompts: number of tokens put in front of the keys.
        grow_queries: the prompts are queries as well; their rows attend everywhere, as what they give is thrown away.

    Raises:
        ValueError: for a mask of another form.
    """
    if not isinstance(mask, torch.Tensor) or mask.dim() not in (2, 4):
        shape = tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise ValueError(
            "Prompts need an attention mask of shape (batch, keys) or (batch, heads, queries, keys), got "
            f"{shape}. Load the model with attn_implementation='sdpa' or 'eager'."
        )
    attends = 1 if mask.dim() == 2 or mask.dtype == torch.bool else 0
    mask = nn.functional.pad(mask, (num_prompts, 0), value=attends)
    if mask.dim() == 4 and grow_queries:
        mask = nn.functional.pad(mask, (0, 0, num_prompts, 0), value=attends)
    return mask

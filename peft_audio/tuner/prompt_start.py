"""Prompts that start as tokens of real clips, where random ones would disturb a trained attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Optional

import torch
from peft import PeftModel
from torch import nn

from ..backbones.spec import EncoderSpec, LayerModules
from ..backbones.table import locate, resolve
from ..modules import EmbeddingPrompt
from ..upstream.peft_modules import only_adapter
from ..upstream.torch_tensors import is_sharded
from ..utils.undisturbed import undisturbed
from .calls import Call, parameter_names
from .encoder_layer import EncoderTunerLayer
from .masks import real_tokens


Layers = list[tuple[EncoderTunerLayer, list[EmbeddingPrompt]]]


def initialize_prompts(
    model: nn.Module, inputs: Mapping[str, Any], adapter_name: Optional[str] = None, seed: int = 0
) -> nn.Module:
    """Let the prompts of every layer start as tokens that enter this layer when the base model hears real clips.

    The papers draw prompts at random. On Whisper tiny.en four such prompts a layer change the encoder's output by 115 % of
    its norm, tokens of other clips by 7 % (`method_comparison/prompt_starts.py`).

    Call this after `get_peft_model` and before the first training step, as `initialize_lora_eva_weights` of PEFT.
    `peft_audio.trainer.AudioTrainer` does it by itself for prompts that have not been trained.

    Args:
        model: with an adapter that has prompts.
        inputs: one batch of the model's inputs, on its device. Labels among them are left out, but for a decoder: it reads
            them, or without any the token that it starts with.
        adapter_name: the adapter; None for the active ones.
        seed: of the draw of tokens.

    Raises:
        ValueError: if no such adapter has prompts, or they are sharded (FSDP, ZeRO-3).

    Examples:
        >>> model = ASTForAudioClassification(ASTConfig(hidden_size=12, num_hidden_layers=2, max_length=32))
        >>> model = get_peft_model(model, peft_audio.IPETConfig())
        >>> clips = {"input_values": torch.randn(4, 32, 128)}
        >>> model = peft_audio.initialize_prompts(model, clips)
    """
    base: nn.Module = model.get_base_model() if isinstance(model, PeftModel) else model
    layers = _with_prompts(base, adapter_name)
    if not layers or any(is_sharded(prompt.embeddings) for _, prompts in layers for prompt in prompts):
        raise ValueError(
            f"initialize_prompts takes a model with an adapter that has prompts, not sharded, got {type(base).__name__} and "
            f"adapter_name={adapter_name!r}. Call it after get_peft_model, and before the model is sharded."
        )
    _start(base, layers, _inputs_alone(base, inputs), seed)
    return model


def _inputs_alone(base: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch without its labels, but for a decoder, which reads them, or the token that it starts with."""
    kept = {name: value for name, value in inputs.items() if "label" not in name}
    if resolve(base).decoder is None:
        return kept
    if "labels" in inputs or any(name.startswith("decoder_input") for name in kept):
        return dict(inputs)
    clips = next(iter(kept.values()))
    start = clips.new_full((len(clips), 1), base.config.decoder_start_token_id, dtype=torch.long)
    return {**kept, "decoder_input_ids": start}


@torch.no_grad()
def _start(base: nn.Module, layers: Layers, inputs: dict[str, Any], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with undisturbed(base), only_adapter(base, None):
        base.eval()
        tokens = _tokens_of_layers(base, [layer for layer, _ in layers], inputs)
    for (_, prompts), candidates in zip(layers, tokens):
        for prompt in prompts:
            prompt.embeddings.copy_(_draw(candidates, prompt.num_tokens, generator))


def has_untrained_prompts(model: nn.Module) -> bool:
    """Whether prompts of the active adapters are as they were drawn at random."""
    return any(prompt.is_untrained for _, prompts in _with_prompts(model, None) for prompt in prompts)


def _with_prompts(model: nn.Module, adapter_name: Optional[str]) -> Layers:
    found: Layers = []
    for layer in model.modules():
        if isinstance(layer, EncoderTunerLayer):
            prompts: Any = layer.part("prompt")
            names = layer.active_adapters if adapter_name is None else [adapter_name]
            found.append((layer, [prompts[name] for name in names if name in prompts]))
    return [(layer, prompts) for layer, prompts in found if prompts]


def _tokens_of_layers(model: nn.Module, layers: list[EncoderTunerLayer], inputs: dict[str, Any]) -> list[torch.Tensor]:
    """Return what enters attention of these layers, in front of its norm if it has one, `(tokens, hidden_size)` each."""
    spec = resolve(model).spec
    watches = [_Watch(locate(layer, spec), spec) for layer in layers]
    handles = [handle for watch in watches for handle in watch.install()]
    try:
        model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [watch.tokens for watch in watches]


class _Watch:
    """Keeps the tokens that one layer's attention reads, without padding."""

    def __init__(self, modules: LayerModules, spec: EncoderSpec) -> None:
        self.modules = modules
        self.spec = spec
        self.tokens = torch.empty(0)
        self._before_norm: Optional[torch.Tensor] = None

    def install(self) -> Iterator[Any]:
        """Yield the handles of its hooks."""
        if self.modules.attention_norm is not None:
            yield self.modules.attention_norm.register_forward_pre_hook(self._see_norm)
        see = partial(self._see_attention, parameter_names(self.modules.attention))
        yield self.modules.attention.register_forward_pre_hook(see, with_kwargs=True)

    def _see_norm(self, norm: nn.Module, args: tuple) -> None:
        self._before_norm = args[0]

    def _see_attention(self, names: tuple[str, ...], attention: nn.Module, args: tuple, kwargs: dict) -> None:
        call = Call(names, args, kwargs)
        tokens = call.get(names[0]) if self._before_norm is None else self._before_norm
        tokens = tokens if self.spec.batch_first else tokens.transpose(0, 1)
        padding = self.spec.padding_mask
        real = real_tokens(call.get(padding or "attention_mask"), len(tokens), padding is not None)
        if real is None or real.shape != tokens.shape[:2]:
            self.tokens = tokens.flatten(0, 1)
        else:
            self.tokens = tokens[real]


def _draw(tokens: torch.Tensor, number: int, generator: torch.Generator) -> torch.Tensor:
    # The same clips give the same prompts, in whatever order they come.
    tokens = tokens[tokens.float().norm(dim=-1).argsort()]
    order = torch.randperm(len(tokens), generator=generator)
    repeats = -(-number // len(tokens))
    return tokens[order.repeat(repeats)[:number].to(tokens.device)]

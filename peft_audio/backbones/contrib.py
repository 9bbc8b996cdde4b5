"""Rows for audio encoders whose code is on the Hub and not in transformers: Dasheng, CED, EAT, MERT and BEATs.

None is in the table until it is asked for:

>>> from peft_audio.backbones import contrib
>>> contrib.register("dasheng")
>>> from peft_audio import supported_backbones
>>> "dasheng" in supported_backbones()
True

The layouts were read from the models' code, each named at its row, and tried on models of the same layout with random
weights. The published weights were not at hand. Code on the Hub may change, so what a row claims is checked the first time
that adapters are put on a model (see `register_backbone`).
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Optional

import torch

from .relative_positions import BIAS_POSITIONS
from .spec import EncoderSpec
from .table import BACKBONES, SpecOrRule, register_backbone


# Shapes of one input. Functions of the module, so that a row is the same each time and is checked once.
def _dasheng_shape(config: Any) -> tuple[Optional[int], ...]:
    return (config.encoder_kwargs.get("n_mels", 64), None)


def _ced_shape(config: Any) -> tuple[Optional[int], ...]:
    return (config.n_mels, None)


def _eat_shape(config: Any) -> tuple[Optional[int], ...]:
    return (config.in_chans, *config.img_size)


# The scales ls1 and ls2 are identities in the published models; they end the blocks.
_BLOCKS = EncoderSpec(
    layers="encoder.blocks",
    attention="attn",
    attention_norm="norm1",
    attention_output="ls1",
    feed_forward_norm="norm2",
    feed_forward="ls2",
    head=("outputlayer",),
)


def _dasheng(config: Any) -> EncoderSpec:
    """Dasheng: github.com/jimbozhang/hf_transformers_custom_model_dasheng, dasheng_model/modeling_dasheng.py.

    `DashengModel` takes `input_values`, `(batch, mel bins, frames)`. In the published models a patch has the height of the
    spectrogram, so the tokens are one row of time. Attention takes no mask.
    """
    options = config.encoder_kwargs
    height = options["patch_stride"][0]
    is_one_row = height == options.get("n_mels", 64) and options.get("pooling", "mean") == "mean"
    return replace(
        _BLOCKS,
        patch_projection=None if is_one_row else "encoder.patch_embed.proj",
        input_shape=_dasheng_shape,
    )


def _ced(config: Any) -> EncoderSpec:
    """CED: github.com/jimbozhang/hf_transformers_custom_model_ced, ced_model/modeling_ced.py.

    `CedForAudioClassification` has its `CedModel` at `encoder`; both take `input_values`, `(batch, mel bins, frames)`. The
    grid of patches has a row for each band of frequencies. Attention takes no mask.
    """
    return replace(
        _BLOCKS,
        layers=("encoder.blocks", "blocks"),
        patch_projection=("encoder.patch_embed.proj", "patch_embed.proj"),
        input_shape=_ced_shape,
        head_settings=(("outputlayer", ("outputdim",)),),
    )


def _eat(config: Any) -> EncoderSpec:
    """EAT: the files modeling_eat.py, eat_model.py and model_core.py of huggingface.co/worstchan/EAT-base_epoch30_pretrain.

    They were read in a copy; the layers are those of github.com/cwx-worst-one/EAT, models/modules.py. `EATModel` takes
    `(batch, 1, frames, mel bins)`. The grid of patches has a row for each step of time. The published models have their
    norms behind the blocks, and are given no mask.
    """
    # In pre-norm layers this code adds the feed-forward block's output to itself, so adapters come after that: at the dropout.
    pre_norm: dict[str, Any] = {"attention_norm": "norm1", "feed_forward_norm": "norm2"}
    post_norm: dict[str, Any] = {"attention_norm": None, "feed_forward_norm": "norm1"}
    return EncoderSpec(
        layers="model.blocks",
        attention="attn",
        **(pre_norm if config.layer_norm_first else post_norm),
        feed_forward="post_mlp_dropout",
        head=("model.fc_norm", "model.head"),
        patch_projection="model.local_encoder.proj",
        rows_are_time=True,
        input="model.local_encoder",
        input_shape=_eat_shape,
        padding_mask="padding_mask",
    )


def _mert(config: Any) -> EncoderSpec:
    """MERT: github.com/yizhilll/MERT, scripts/mert_hf/modeling_MERT.py, as in huggingface.co/m-a-p/MERT-v1-330M.

    `MERTModel` is transformers' HuBERT but for its feature projection. With `deepnorm` it has layers of its own with the
    same names, whose residuals are scaled; an adapter's output is not.
    """
    row = BACKBONES["hubert"]
    spec = row if isinstance(row, EncoderSpec) else row(config)
    if not config.feature_extractor_cqt:
        return spec
    # The constant-Q transform reads the waveform beside the convolutions, so input prompts would reach half of the model.
    return replace(spec, input=None, hides_padding=False)


def _beats(config: Any) -> EncoderSpec:
    """BEATs: github.com/microsoft/unilm, beats/BEATs.py and beats/backbone.py.

    `BEATs` itself has no `forward` and no configuration of transformers: docs/backbones_on_the_hub.md has the class around it
    that this row is for, with `BEATs` at `beats`. Layers take `(tokens, batch, d)`. The first layer makes a bias for relative
    positions that is handed on. The grid of patches has a row for each step of time.
    """
    is_pre_norm, has_bias = (
        _beats_field(config, name) for name in ("layer_norm_first", "relative_position_embedding")
    )
    pre_norm: dict[str, Any] = {"attention_norm": "self_attn_layer_norm", "feed_forward_norm": "final_layer_norm"}
    post_norm: dict[str, Any] = {"attention_norm": None, "feed_forward_norm": "self_attn_layer_norm"}
    return EncoderSpec(
        layers="beats.encoder.layers",
        attention="self_attn",
        **(pre_norm if is_pre_norm else post_norm),
        feed_forward="fc2",
        head=("classifier",),
        patch_projection="beats.patch_embedding",
        rows_are_time=True,
        positions=_BEATS_POSITIONS if has_bias else None,
        batch_first=False,
        padding_mask="key_padding_mask",
    )


def _beats_field(config: Any, name: str) -> Any:
    if not hasattr(config, name):
        raise ValueError(
            f"`config.{name}` is needed to know the layers of a BEATs model, got a configuration without it. Give it the "
            'fields of the checkpoint: PretrainedConfig(**checkpoint["cfg"]).'
        )
    return getattr(config, name)


def _grown_bias(attention: Any, tokens: torch.Tensor, num_prompts: int, arguments: dict[str, Any]) -> dict[str, Any]:
    # The same bias as WavLM's, from an embedding of another name.
    as_in_wavlm: Any = SimpleNamespace(
        compute_bias=attention.compute_bias, rel_attn_embed=attention.relative_attention_bias
    )
    return BIAS_POSITIONS.grow(as_in_wavlm, tokens, num_prompts, arguments)


_BEATS_POSITIONS = replace(BIAS_POSITIONS, grow=_grown_bias, source="beats.encoder.layers.0.self_attn")


SPECS: dict[str, SpecOrRule] = {
    "beats": _beats,
    "ced": _ced,
    "dasheng": _dasheng,
    "eat": _eat,
    "mert_model": _mert,
}


def register(model_type: str) -> None:
    """Add a row of this module to the table of backbones, as `register_backbone` adds yours.

    Args:
        model_type: the value of `model.config.model_type`: "beats", "ced", "dasheng", "eat" or "mert_model". For a model
            that has the same layout and another type: `register_backbone("my-type", contrib.SPECS["eat"])`.

    Raises:
        ValueError: there is no row for this type.
    """
    if model_type not in SPECS:
        raise ValueError(f"`model_type` must be one of {', '.join(sorted(SPECS))}, got {model_type!r}.")
    register_backbone(model_type, SPECS[model_type])

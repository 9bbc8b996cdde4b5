"""Where each model type keeps its parts: the one table, and the only place that knows Hugging Face's module names.

First the models with a classifier, then other audio encoders, then image models for LoAA.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Optional, Union

from .relative_positions import (
    BIAS_POSITIONS,
    CONFORMER_POSITIONS,
    DISENTANGLED_POSITIONS,
    ENCODED_POSITIONS,
    ROTARY_POSITIONS,
    SPEECHT5_POSITIONS,
)
from .spec import EncoderSpec


SpecOrRule = Union[EncoderSpec, Callable[[Any], EncoderSpec]]


def _image_shape(config: Any) -> tuple[int, ...]:
    size = config.image_size
    return (config.num_channels, *((size, size) if isinstance(size, int) else size))


_PATCHES = EncoderSpec(
    layers=("layers", "encoder.layer"),
    attention="attention",
    attention_norm="layernorm_before",
    feed_forward_norm="layernorm_after",
    feed_forward=("mlp", "output.dense"),
    patch_projection="embeddings.patch_embeddings.projection",
    input="embeddings",
    keys_and_values=("k_proj", "v_proj"),
)

_AST = replace(
    _PATCHES,
    input_shape=lambda config: (config.max_length, config.num_mel_bins),
    settings=("max_length", "num_mel_bins", "time_stride", "frequency_stride"),
    read_tokens=2,
)

_VIT = replace(
    _PATCHES,
    input_shape=_image_shape,
    settings=("image_size",),
    read_tokens=1,
)

_DEIT = replace(_VIT, head=("classifier", "cls_classifier", "distillation_classifier"), read_tokens=2)

_FRAMES = EncoderSpec(
    layers="encoder.layers",
    attention="attention",
    feed_forward_norm="layer_norm",
    feed_forward="feed_forward",
    head=("projector", "tdnn", "feature_extractor", "classifier", "objective", "lm_head"),
    layer_weights="layer_weights",
    frame_projection="projector",
    settings=("use_weighted_layer_sum",),
)

_HEAD_SETTINGS = (
    ("lm_head", ("vocab_size", "pad_token_id", "ctc_loss_reduction", "ctc_zero_infinity")),
    ("tdnn", ("tdnn_dim", "tdnn_kernel", "tdnn_dilation", "xvector_output_dim")),
    ("adapter", ("add_adapter", "num_adapter_layers", "adapter_kernel_size", "adapter_stride", "output_hidden_size")),
)

_WAVEFORM = replace(
    _FRAMES,
    feature_encoder="feature_extractor",
    input="feature_extractor",
    frame_adapter="adapter",
    head_settings=_HEAD_SETTINGS,
)

_WAV2VEC2 = replace(_WAVEFORM, keys_and_values=("k_proj", "v_proj"))

_STABLE_LAYER_NORM: dict[str, Any] = {"attention_norm": "layer_norm", "feed_forward_norm": "final_layer_norm"}

_WAVLM = replace(_WAVEFORM, positions=BIAS_POSITIONS)

# In transformers 5.17 a SEW-D classifier misspells its encoder's prefix, so paths may start from the model.
_SEW_D = replace(
    _WAVEFORM,
    layers=("encoder.encoder.layer", "sew_d.encoder.encoder.layer"),
    feature_encoder=("feature_extractor", "sew_d.feature_extractor"),
    input=("feature_extractor", "sew_d.feature_extractor"),
    attention="attention.self",
    attention_output="attention.output.dense",
    feed_forward_norm="attention.output.LayerNorm",
    feed_forward="output.dense",
    positions=DISENTANGLED_POSITIONS,
)

_CONFORMER = replace(
    _WAVEFORM,
    attention="self_attn",
    attention_norm="self_attn_layer_norm",
    feed_forward_norm="ffn2_layer_norm",
    feed_forward="ffn2",
)

_WAV2VEC2_BERT = replace(
    _CONFORMER,
    feature_encoder=None,
    input="feature_projection",
    input_shape=lambda config: (None, config.feature_projection_input_dim),
    hides_padding=True,
)

_WHISPER = replace(
    _FRAMES,
    layers=("encoder.layers", "layers"),
    attention="self_attn",
    attention_norm="self_attn_layer_norm",
    feed_forward_norm="final_layer_norm",
    feed_forward="fc2",
    decoder_layers="decoder.layers",
    input=("encoder.conv1", "conv1"),
    input_shape=lambda config: (config.num_mel_bins, 2 * config.max_source_positions),
    settings=(*_FRAMES.settings, "max_source_positions"),
    keys_and_values=("k_proj", "v_proj"),
)


def _by_norms(spec: EncoderSpec) -> SpecOrRule:
    def rule(config: Any) -> EncoderSpec:
        places: dict[str, Any] = _STABLE_LAYER_NORM if config.do_stable_layer_norm else {}
        # A group norm over time in the feature encoder lets padding into every frame.
        return replace(spec, **places, hides_padding=config.feat_extract_norm == "layer")

    return rule


def _with_relative_positions(spec: EncoderSpec) -> SpecOrRule:
    as_argument = ("relative", "rotary")  # attention works the others out for itself
    return lambda config: replace(
        spec, positions=CONFORMER_POSITIONS if config.position_embeddings_type in as_argument else None
    )


# ---- other encoders of speech ----------------------------------------------------------------------------------------
# Those that end in text stay frozen behind the encoder: they have no head to train, except of CTC.


def _encoder_config(config: Any) -> Any:
    """Return the configuration of the encoder alone, from that of the model around it or its own."""
    parts = (getattr(config, name, None) for name in ("audio_config", "encoder_config"))
    return next((part for part in parts if part is not None), config)


def _frames_of(field: str) -> Callable[[Any], tuple[Optional[int], ...]]:
    """Return the rule for inputs of any number of frames, with as many features as this field of the configuration says."""
    return lambda config: (None, getattr(_encoder_config(config), field))


def _whisper_shape(config: Any) -> tuple[int, ...]:
    config = _encoder_config(config)
    return (config.num_mel_bins, 2 * config.max_source_positions)


# Whisper's encoder in a language model that hears: Qwen2-Audio, Voxtral, Audio Flamingo 3.
_AUDIO_TOWER = EncoderSpec(
    encoder="audio_tower",
    layers="layers",
    attention="self_attn",
    attention_norm="self_attn_layer_norm",
    feed_forward_norm="final_layer_norm",
    feed_forward="fc2",
    head=(),
    input="conv1",
    input_shape=_whisper_shape,
    keys_and_values=("k_proj", "v_proj"),
)

_SPEECH_TO_TEXT = replace(
    _AUDIO_TOWER,
    encoder="encoder",
    decoder_layers="decoder.layers",
    input="conv",
    input_shape=lambda config: (None, config.input_feat_per_channel * config.input_channels),
)

_SPEECHT5 = EncoderSpec(
    encoder="encoder",
    layers="wrapped_encoder.layers",
    attention="attention",
    feed_forward_norm="layer_norm",
    feed_forward="feed_forward",
    head=(),
    feature_encoder="prenet.feature_encoder",
    input="prenet.feature_encoder",
    positions=SPEECHT5_POSITIONS,
)

_MOONSHINE = EncoderSpec(
    encoder="encoder",
    layers="layers",
    attention="self_attn",
    attention_norm="input_layernorm",
    feed_forward_norm="post_attention_layernorm",
    feed_forward="mlp",
    head=(),
    positions=ROTARY_POSITIONS,
)

_MOONSHINE_STREAMING = replace(_MOONSHINE, positions=None, keys_and_values=("k_proj", "v_proj"))

_PARAKEET = EncoderSpec(
    encoder="encoder",
    layers="layers",
    attention="self_attn",
    attention_norm="norm_self_att",
    feed_forward_norm="norm_feed_forward2",
    feed_forward="feed_forward2",
    head=("ctc_head",),
    input="subsampling",
    input_shape=_frames_of("num_mel_bins"),
    positions=ENCODED_POSITIONS,
    hides_padding=True,
)

_LASR = replace(_PARAKEET, input="subsampler", positions=ROTARY_POSITIONS)

_SEAMLESS = replace(
    _CONFORMER,
    encoder="speech_encoder",
    head=(),
    head_settings=(),
    layer_weights=None,
    frame_projection=None,
    frame_adapter=None,
    feature_encoder=None,
    input="feature_projection",
    input_shape=_frames_of("feature_projection_input_dim"),
    settings=(),
    hides_padding=True,
)

# Attention within blocks of tokens, and the norms are part of attention and feed-forward.
_GRANITE_SPEECH = EncoderSpec(
    encoder="encoder",
    layers="layers",
    attention="attn",
    attention_norm="attn.pre_norm",
    feed_forward_norm="ff2.pre_norm",
    feed_forward="ff2",
    head=(),
    input="input_linear",
    input_shape=_frames_of("input_dim"),
    block_attention=True,
)

_NEMOTRON_DIARIZATION = EncoderSpec(
    encoder="audio_tower",
    layers="layers",
    attention="self_attn",
    attention_norm="layer_norm1",
    feed_forward_norm="layer_norm2",
    feed_forward="mlp",
    positions=ROTARY_POSITIONS,
    hides_padding=True,
)

# ---- image models, for convolutions over their grid of patches -------------------------------------------------------

# Blocks end with a scale for each channel. The head reads the mean of the patches, too.
_DINOV2 = EncoderSpec(
    layers=("encoder.layer", "layers"),
    attention="attention",
    attention_norm="norm1",
    attention_output="layer_scale1",
    feed_forward_norm="norm2",
    feed_forward="layer_scale2",
    patch_projection="embeddings.patch_embeddings.projection",
    input="embeddings",
    input_shape=_image_shape,
    settings=("image_size",),
    keys_and_values=("k_proj", "v_proj"),
)

# Rotary positions are for patches alone: prompts stand in front of them like the special tokens, and get none.
_DINOV3 = replace(
    _DINOV2,
    layers="model.layer",
    patch_projection="embeddings.patch_embeddings",
    settings=(),
    keys_and_values=None,
)


BACKBONES: dict[str, SpecOrRule] = {
    "audio-spectrogram-transformer": _AST,
    "audioflamingo3": _AUDIO_TOWER,
    "audioflamingo3_encoder": _AUDIO_TOWER,
    "data2vec-audio": _WAV2VEC2,
    "deit": _DEIT,
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2,
    "dinov3_vit": _DINOV3,
    "granite_speech": _GRANITE_SPEECH,
    "granite_speech_encoder": _GRANITE_SPEECH,
    "hubert": _by_norms(_WAV2VEC2),
    "lasr_ctc": _LASR,
    "lasr_encoder": _LASR,
    "moonshine": _MOONSHINE,
    "moonshine_streaming": _MOONSHINE_STREAMING,
    "moonshine_streaming_encoder": _MOONSHINE_STREAMING,
    "nemotron3_diarization": _NEMOTRON_DIARIZATION,
    "nemotron3_diarization_audio": _NEMOTRON_DIARIZATION,
    "parakeet_ctc": _PARAKEET,
    "parakeet_encoder": _PARAKEET,
    "qwen2_audio": _AUDIO_TOWER,
    "qwen2_audio_encoder": _AUDIO_TOWER,
    "seamless_m4t": _with_relative_positions(_SEAMLESS),
    "seamless_m4t_v2": _SEAMLESS,
    "sew": _WAV2VEC2,
    "sew-d": _SEW_D,
    "speech_to_text": _SPEECH_TO_TEXT,
    "speecht5": _SPEECHT5,
    "unispeech": _by_norms(_WAV2VEC2),
    "unispeech-sat": _by_norms(_WAV2VEC2),
    "vit": _VIT,
    "voxtral": _AUDIO_TOWER,
    "voxtral_encoder": _AUDIO_TOWER,
    "wav2vec2": _by_norms(_WAV2VEC2),
    "wav2vec2-bert": _with_relative_positions(_WAV2VEC2_BERT),
    "wav2vec2-conformer": _with_relative_positions(_CONFORMER),
    "wavlm": _by_norms(_WAVLM),
    "whisper": _WHISPER,
}

_STAGES = "its encoder is a Swin transformer, whose layers are in stages of different widths, not in one list"
_PACKED = (
    "its encoder joins the tokens of all clips to one sequence without a batch, where prompts and grids have no place"
)

# Encoders that the one mechanism of this package does not fit, with the reason.
UNSUPPORTED = {
    "clap": _STAGES,
    "clap_audio_model": _STAGES,
    "qwen2_5_omni": _PACKED,
    "qwen2_5_omni_thinker": _PACKED,
    "qwen2_5_omni_audio_encoder": _PACKED,
    "qwen3_omni_moe": _PACKED,
    "qwen3_omni_moe_thinker": _PACKED,
    "qwen3_omni_moe_audio_encoder": _PACKED,
}

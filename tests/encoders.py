"""Tiny models of the encoders outside of transformers' audio classifiers, and of the models that they are part of."""

from typing import Any, NamedTuple

import pytest
import torch
import transformers


WIDTH = 32
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
LABELS = torch.tensor([[3, 4, 9], [6, 7, 8]])
ATTENTION = {"num_attention_heads": 4}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_key_value_heads": 4,
    "vocab_size": 16,
    "pad_token_id": 0,
    **ATTENTION,
}
TOWER = {
    "d_model": WIDTH,
    "hidden_size": WIDTH,
    "encoder_layers": 3,
    "num_hidden_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "intermediate_size": 64,
    "num_mel_bins": 12,
    "max_source_positions": 16,
    **ATTENTION,
}
SPEECH = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "intermediate_size": 64,
    "num_mel_bins": 16,
    "subsampling_conv_channels": 8,
    "conv_kernel_size": 5,
    **ATTENTION,
}
ENCODER_DECODER = {
    "d_model": WIDTH,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": 12,
}
MOONSHINE = {
    **TOKENS,
    "hidden_size": 36,
    "intermediate_size": 64,
    "vocab_size": 12,
    "encoder_num_hidden_layers": 3,
    "decoder_num_hidden_layers": 1,
    "encoder_num_attention_heads": 4,
    "decoder_num_attention_heads": 4,
}
SPEECHT5 = {
    "hidden_size": WIDTH,
    "encoder_layers": 3,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_max_relative_position": 8,
    "conv_dim": (16, 16),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 8),
    "num_feat_extract_layers": 2,
    "feat_extract_norm": "layer",
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 12,
    "mask_time_prob": 0.0,
}
SEAMLESS = {
    "hidden_size": WIDTH,
    "feature_projection_input_dim": 12,
    "speech_encoder_layers": 3,
    "speech_encoder_attention_heads": 4,
    "speech_encoder_intermediate_size": 64,
    "conv_depthwise_kernel_size": 5,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "vocab_size": 12,
    "t2u_encoder_layers": 1,
    "t2u_decoder_layers": 1,
}
IMAGE = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "intermediate_size": 64,
    "image_size": 24,
    "patch_size": 8,
    "num_labels": 5,
    **ATTENTION,
}
GRANITE = {"hidden_dim": WIDTH, "num_layers": 4, "num_heads": 4, "dim_head": 8, "input_dim": 12, "output_dim": 6}
GRANITE |= {"context_size": 6, "max_pos_emb": 8, "conv_kernel_size": 5}
QFORMER = {"model_type": "blip_2_qformer", "encoder_hidden_size": WIDTH, "num_hidden_layers": 1, "hidden_size": 32}
STREAMING = {
    **TOKENS,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_key_value_heads": 4,
    "vocab_size": 12,
}


class Encoder(NamedTuple):
    """A tiny model around an encoder.

    Attributes:
        model: the name of its class in transformers.
        config: its configuration's fields.
        part: path of the encoder, from the model.
        name: of the encoder's main input.
        shape: of one clip's input.
        whole: further inputs of the whole model, with labels where it has a loss; None where the encoder is run alone.
        mask: name of the encoder's padding mask, which has a number for each position of the input. None without one.
        hides_padding: whether a padded clip gives in the base model what it gives alone.
    """

    model: str
    config: dict[str, Any]
    part: str
    name: str
    shape: tuple[int, ...]
    whole: Any = None
    mask: Any = "attention_mask"
    hides_padding: bool = False

    def make(self, seed=0):
        cls = getattr(transformers, self.model, None)
        if cls is None:
            pytest.skip(f"this version of transformers has no {self.model}")
        torch.manual_seed(seed)
        model = cls(cls.config_class(**self.config)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1 and "rel_pos" not in name:
                    parameter.mul_(3)  # so that what a layer does can be seen
        return model

    def inputs(self, batch_size=2):
        generator = torch.Generator().manual_seed(1)
        inputs = {self.name: torch.randn(batch_size, *self.shape, generator=generator)}
        if self.model.startswith("AudioFlamingo3"):
            inputs["input_features_mask"] = torch.ones(batch_size, self.shape[-1], dtype=torch.long)
        return inputs

    def encoder(self, model):
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        return base.get_submodule(self.part)

    def states(self, model, inputs=None):
        """What the encoder gives, `(batch, tokens, d)`."""
        return self.encoder(model)(**(self.inputs() if inputs is None else inputs)).last_hidden_state

    def loss(self, model):
        if self.whole is None:
            return self.states(model).square().mean()
        output = model(**self.inputs(), **self.whole)
        return output.loss if "loss" in output and output.loss is not None else output.logits.square().mean()


def around(config, **options):
    """The configuration of a language model that hears."""
    return {"audio_config": config, "text_config": TEXT, "audio_token_id": 5, **options}


def heard(num_tokens):
    """Text with places for what a language model hears."""
    ids = torch.cat([torch.full((2, num_tokens), 5), LABELS], dim=1)
    return {"input_ids": ids, "labels": ids.where(ids != 5, -100)}


TEXT_LABELS = {"labels": LABELS}
ENCODERS = {
    "qwen2_audio": Encoder(
        "Qwen2AudioForConditionalGeneration",
        around(TOWER, audio_token_index=5),
        "model.audio_tower",
        "input_features",
        (12, 32),
        {
            **heard(8),
            "attention_mask": torch.ones(2, 11, dtype=torch.long),
            "feature_attention_mask": torch.ones(2, 32),
        },
        mask=None,
    ),
    "voxtral": Encoder(
        "VoxtralForConditionalGeneration",
        around({**TOWER, "intermediate_size": 64}),
        "model.audio_tower",
        "input_features",
        (12, 32),
        heard(8),
        mask=None,
    ),
    "audioflamingo3": Encoder(
        "AudioFlamingo3ForConditionalGeneration",
        around(TOWER),
        "model.audio_tower",
        "input_features",
        (12, 32),
        heard(8),
        mask="input_features_mask",
    ),
    "speech_to_text": Encoder(
        "Speech2TextForConditionalGeneration",
        {**ENCODER_DECODER, "input_feat_per_channel": 12, "conv_channels": 16, "max_source_positions": 64},
        "model.encoder",
        "input_features",
        (48, 12),
        TEXT_LABELS,
    ),
    "speecht5": Encoder("SpeechT5ForSpeechToText", SPEECHT5, "speecht5.encoder", "input_values", (800,), TEXT_LABELS),
    "moonshine": Encoder(
        "MoonshineForConditionalGeneration", MOONSHINE, "model.encoder", "input_values", (6000,), TEXT_LABELS
    ),
    "moonshine_streaming": Encoder(
        "MoonshineStreamingForConditionalGeneration",
        {
            "encoder_config": {**SPEECH, "head_dim": 8, "sliding_windows": [[4, 2]] * 3, "num_key_value_heads": 4},
            **STREAMING,
            **ATTENTION,
        },
        "model.encoder",
        "input_values",
        (5120,),
        TEXT_LABELS,
    ),
    "parakeet_ctc": Encoder(
        "ParakeetForCTC",
        {"encoder_config": SPEECH, "vocab_size": 12, "pad_token_id": 0},
        "encoder",
        "input_features",
        (96, 16),
        {**TEXT_LABELS, "attention_mask": torch.ones(2, 96, dtype=torch.long)},
        hides_padding=True,
    ),
    "lasr_ctc": Encoder(
        "LasrForCTC",
        {"encoder_config": {**SPEECH, "num_key_value_heads": 4}, "vocab_size": 12, "pad_token_id": 0},
        "encoder",
        "input_features",
        (96, 16),
        {**TEXT_LABELS, "attention_mask": torch.ones(2, 96, dtype=torch.long)},
        hides_padding=True,
    ),
    "seamless_m4t": Encoder(
        "SeamlessM4TForSpeechToText",
        SEAMLESS,
        "speech_encoder",
        "input_features",
        (24, 12),
        TEXT_LABELS,
        hides_padding=True,
    ),
    "seamless_m4t_v2": Encoder(
        "SeamlessM4Tv2ForSpeechToText",
        {**SEAMLESS, "speech_encoder_chunk_size": 5, "speech_encoder_left_chunk_num": 1},
        "speech_encoder",
        "input_features",
        (24, 12),
        TEXT_LABELS,
        hides_padding=True,
    ),
    "granite_speech": Encoder(
        "GraniteSpeechForConditionalGeneration",
        {
            "encoder_config": GRANITE,
            "text_config": {**TEXT, "model_type": "granite"},
            "projector_config": {**QFORMER, "num_attention_heads": 4, "intermediate_size": 32},
            "window_size": 4,
            "downsample_rate": 2,
            "has_lora_adapter": False,
            "audio_token_index": 5,
        },
        "model.encoder",
        "hidden_states",
        (20, 12),
        mask=None,
    ),
    "nemotron3_diarization": Encoder(
        "Nemotron3DiarizationForAudioFrameClassification",
        {
            "audio_config": {**SPEECH, "subsampling_factor": 2},
            "head_config": {"hidden_size": 16, "audio_hidden_size": WIDTH, "subsampling_factor": 2},
            "streaming_config": {"subsampling_factor": 2},
        },
        "model.audio_tower",
        "input_features",
        (40, 16),
        {},
        hides_padding=True,
    ),
    "dinov2": Encoder("Dinov2ForImageClassification", IMAGE, "dinov2", "pixel_values", (3, 24, 24), {}, mask=None),
    "dinov2_with_registers": Encoder(
        "Dinov2WithRegistersForImageClassification",
        IMAGE,
        "dinov2_with_registers",
        "pixel_values",
        (3, 24, 24),
        {},
        mask=None,
    ),
    "dinov3_vit": Encoder("DINOv3ViTModel", IMAGE, "", "pixel_values", (3, 24, 24), mask=None),
}
each_encoder = pytest.mark.parametrize("encoder", ENCODERS)

"""Tiny seeded models, inputs and configurations that the tests are parametrised over."""

import functools
import os
from pathlib import Path

import pytest
import torch
import transformers

from peft_audio import (
    BottleneckAdapterConfig,
    EmbeddingPromptConfig,
    InputPromptConfig,
    IPETConfig,
    ParallelMLPAdapterConfig,
    SideNetworkConfig,
    TimeFreqConvAdapterConfig,
)


SHARED = Path(os.environ.get("PEFT_AUDIO_SHARED", Path(__file__).resolve().parents[2] / "shared"))
NUM_LABELS = 5
HIDDEN_SIZE = 32
NUM_LAYERS = 3


def shared_path(name):
    """Path of a file among the reference data beside the repository; skips the test where it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"reference data {name} not found in {SHARED} (set PEFT_AUDIO_SHARED)")
    return path


def real_whisper():
    """A classifier on the encoder of Whisper tiny.en; skips the test where the weights are absent."""
    folder = shared_path("models/whisper-tiny.en")
    torch.manual_seed(0)
    options = {"num_labels": NUM_LABELS, "dtype": torch.float32}
    return transformers.WhisperForAudioClassification.from_pretrained(folder, **options).eval()


AST = {
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "max_length": 46,
    "num_mel_bins": 36,
    "layer_norm_eps": 1e-5,
}
IMAGE = {"intermediate_size": 64, "num_attention_heads": 4, "image_size": 24, "patch_size": 8, "layer_norm_eps": 1e-5}
WAVEFORM = {
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "conv_dim": (16, 16),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 8),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "feat_extract_norm": "layer",
    "classifier_proj_size": 16,
    "vocab_size": 8,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
}
STABLE = {**WAVEFORM, "do_stable_layer_norm": True}
SEW = {**WAVEFORM, "squeeze_factor": 2}
SEW_D = {**SEW, "position_buckets": 4, "max_position_embeddings": 64}
CONFORMER = {**WAVEFORM, "conv_depthwise_kernel_size": 5, "conformer_conv_dropout": 0.0}
BERT = {**CONFORMER, "feature_projection_input_dim": 12}
WHISPER = {
    "d_model": HIDDEN_SIZE,
    "encoder_layers": NUM_LAYERS,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_mel_bins": 12,
    "max_source_positions": 14,
    "classifier_proj_size": 16,
    "vocab_size": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "dropout": 0.0,
}

# Names of the configuration, the classifier and the bare encoder in transformers, and the options that make them small.
ARCHITECTURES = {
    "ast": ("ASTConfig", "ASTForAudioClassification", "ASTModel", AST),
    "data2vec-audio": (
        "Data2VecAudioConfig",
        "Data2VecAudioForSequenceClassification",
        "Data2VecAudioModel",
        WAVEFORM,
    ),
    "deit": ("DeiTConfig", "DeiTForImageClassification", "DeiTModel", IMAGE),
    "hubert": ("HubertConfig", "HubertForSequenceClassification", "HubertModel", WAVEFORM),
    "hubert-stable": ("HubertConfig", "HubertForSequenceClassification", "HubertModel", STABLE),
    "sew": ("SEWConfig", "SEWForSequenceClassification", "SEWModel", SEW),
    "sew-d": ("SEWDConfig", "SEWDForSequenceClassification", "SEWDModel", SEW_D),
    "unispeech": ("UniSpeechConfig", "UniSpeechForSequenceClassification", "UniSpeechModel", WAVEFORM),
    "unispeech-stable": ("UniSpeechConfig", "UniSpeechForSequenceClassification", "UniSpeechModel", STABLE),
    "unispeech-sat": ("UniSpeechSatConfig", "UniSpeechSatForSequenceClassification", "UniSpeechSatModel", WAVEFORM),
    "unispeech-sat-stable": (
        "UniSpeechSatConfig",
        "UniSpeechSatForSequenceClassification",
        "UniSpeechSatModel",
        STABLE,
    ),
    "vit": ("ViTConfig", "ViTForImageClassification", "ViTModel", IMAGE),
    "wav2vec2": ("Wav2Vec2Config", "Wav2Vec2ForSequenceClassification", "Wav2Vec2Model", WAVEFORM),
    "wav2vec2-stable": ("Wav2Vec2Config", "Wav2Vec2ForSequenceClassification", "Wav2Vec2Model", STABLE),
    "wav2vec2-bert": ("Wav2Vec2BertConfig", "Wav2Vec2BertForSequenceClassification", "Wav2Vec2BertModel", BERT),
    "wav2vec2-bert-relative": (
        "Wav2Vec2BertConfig",
        "Wav2Vec2BertForSequenceClassification",
        "Wav2Vec2BertModel",
        {**BERT, "position_embeddings_type": "relative"},
    ),
    "wav2vec2-conformer-relative": (
        "Wav2Vec2ConformerConfig",
        "Wav2Vec2ConformerForSequenceClassification",
        "Wav2Vec2ConformerModel",
        CONFORMER,
    ),
    "wav2vec2-conformer-rotary": (
        "Wav2Vec2ConformerConfig",
        "Wav2Vec2ConformerForSequenceClassification",
        "Wav2Vec2ConformerModel",
        {**CONFORMER, "position_embeddings_type": "rotary"},
    ),
    "wavlm": ("WavLMConfig", "WavLMForSequenceClassification", "WavLMModel", WAVEFORM),
    "wavlm-stable": ("WavLMConfig", "WavLMForSequenceClassification", "WavLMModel", STABLE),
    "whisper": ("WhisperConfig", "WhisperForAudioClassification", "WhisperEncoder", WHISPER),
}


def make(architecture, bare=False, seed=0, **overrides):
    """A tiny classifier of this architecture, or (`bare`) its encoder alone, with seeded weights."""
    config_name, classifier_name, encoder_name, options = ARCHITECTURES[architecture]
    shared = {"num_labels": NUM_LABELS}
    if architecture != "whisper":
        shared |= {"hidden_size": HIDDEN_SIZE, "num_hidden_layers": NUM_LAYERS, "initializer_range": 0.2}
    config = getattr(transformers, config_name)(**{**shared, **options, **overrides})
    cls = getattr(
        transformers.models.whisper.modeling_whisper if bare and architecture == "whisper" else transformers,
        encoder_name if bare else classifier_name,
    )
    torch.manual_seed(seed)
    model = cls(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("position_embeddings") or architecture == "whisper" and parameter.dim() > 1:
                parameter.normal_(std=0.2)
    return model


def make_ast(**options):
    return make("ast", **options)


def make_wav2vec2(**options):
    return make("wav2vec2", **options)


BACKBONES = {architecture: functools.partial(make, architecture) for architecture in ARCHITECTURES}
# Types whose tokens form a grid of rows and columns.
WITH_GRID = ("ast", "deit", "vit")
# Types that hide padding: a clip in a padded batch has the logits that it has alone. The others take no padding mask.
WITH_PADDING = tuple(name for name in ARCHITECTURES if name not in (*WITH_GRID, "whisper"))

METHODS = {
    "embedding_prompt": lambda **k: EmbeddingPromptConfig(num_virtual_tokens=3, **k),
    "parallel_mlp": lambda **k: ParallelMLPAdapterConfig(bottleneck_dim=8, **k),
    "parallel_mlp_residual": lambda **k: ParallelMLPAdapterConfig(
        bottleneck_dim=8, adapter_input="residual", scaling=0.1, learn_scaling=True, **k
    ),
    "aat_ms": lambda **k: ParallelMLPAdapterConfig(bottleneck_dim=8, activation="gelu", spatial_adapter=True, **k),
    "ipet": lambda **k: IPETConfig(num_virtual_tokens=3, bottleneck_dim=8, dropout=0.0, **k),
    "joint": lambda **k: IPETConfig(
        num_virtual_tokens=3,
        bottleneck_dim=8,
        dropout=0.0,
        adapter_input="normalized",
        activation="gelu",
        scaling=1.0,
        spatial_adapter=True,
        spatial_bottleneck_dim=4,
        **k,
    ),
    "time_freq_conv": lambda **k: TimeFreqConvAdapterConfig(bottleneck_dim=6, **k),
    "bottleneck_parallel": lambda **k: BottleneckAdapterConfig(
        bottleneck_dim=8, sites=("attention", "mlp"), train_layer_norms=True, **k
    ),
    "bottleneck_sequential": lambda **k: BottleneckAdapterConfig(
        bottleneck_dim=8, sites=("attention", "mlp"), placement="sequential", **k
    ),
    "conformer": lambda **k: BottleneckAdapterConfig(
        bottleneck_dim=8, block="conformer", sites=("mlp", "attention"), conv_kernel=4, **k
    ),
    "side_network": lambda **k: SideNetworkConfig(reduction_factor=4, **k),
    "side_conv": lambda **k: SideNetworkConfig(reduction_factor=4, block="conv", gate="vector", **k),
    "side_attention": lambda **k: SideNetworkConfig(reduction_factor=4, block="attention", **k),
    "input_prompt": lambda **k: InputPromptConfig(prompt_size=3, **k),
    "linear_probe": lambda **k: ParallelMLPAdapterConfig(layers_to_transform=[], **k),
}
# Prompts take part in attention at once; the others start as the base model.
CHANGED_AT_START = ("embedding_prompt", "ipet", "joint")
# Methods that adapt no encoder layer, or have nothing beside the head.
NOT_IN_LAYERS = ("input_prompt", "linear_probe")
# Methods that leave the encoder layers as they are, and add to what the last one gives.
BESIDE_LAYERS = ("side_network", "side_conv", "side_attention")

each_backbone = pytest.mark.parametrize("backbone", BACKBONES)
# Where it is enough to see one of every kind: a grid of patches, post-norm and pre-norm layers.
each_typical_backbone = pytest.mark.parametrize("backbone", ["ast", "wav2vec2", "wav2vec2-stable"])
each_method = pytest.mark.parametrize("method", METHODS)


def make_inputs(backbone, batch_size=2, seed=1):
    """Model inputs by keyword, of the size that the tiny model of `backbone` takes."""
    generator = torch.Generator().manual_seed(seed)
    name, shape = {
        "ast": ("input_values", (46, 36)),
        "deit": ("pixel_values", (3, 24, 24)),
        "vit": ("pixel_values", (3, 24, 24)),
        "wav2vec2-bert": ("input_features", (25, 12)),
        "wav2vec2-bert-relative": ("input_features", (25, 12)),
        "whisper": ("input_features", (12, 28)),
    }.get(backbone, ("input_values", (800,)))
    return {name: torch.randn(batch_size, *shape, generator=generator)}


def make_padded_inputs(backbone, seed=1):
    """A batch of a whole and a shorter clip, and the same two clips alone; with attention masks."""
    ((name, batch),) = make_inputs(backbone, seed=seed).items()
    length = batch.shape[1]
    short = int(0.625 * length)
    batch[1, short:] = 0
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, short:] = 0
    alone = [{name: batch[:1], "attention_mask": mask[:1]}]
    alone.append({name: batch[1:, :short], "attention_mask": mask[1:, :short]})
    return {name: batch, "attention_mask": mask}, alone


def randomize(model, seed=2, std=0.1):
    """Move every trainable parameter away from its start, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(std * torch.randn(parameter.shape, generator=generator))
    return model


def same(first, second):
    """Equal but for the last bits, which depend on the kernel: on gradients asked for, and on places in memory."""
    return torch.allclose(first, second, atol=2e-6, rtol=1e-5)


def trainable(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def count_hooks(model):
    """Hooks, and functions that stand in the place of a `forward`."""
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + ("forward" in vars(module))
        for module in model.modules()
    )

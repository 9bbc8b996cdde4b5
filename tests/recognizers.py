"""Tiny Whispers that write, in the ways that `generate` has."""

import torch
import transformers
from tiny import WHISPER


WAYS = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "several": {"num_beams": 3, "num_return_sequences": 2},
    "sampled": {"do_sample": True},
    "no cache": {"use_cache": False},
    "beams, no cache": {"num_beams": 2, "use_cache": False},
}


def recognizer(**options):
    """A Whisper whose transcripts depend on what it hears, with words only."""
    torch.manual_seed(0)
    config = transformers.WhisperConfig(**{**WHISPER, "vocab_size": 60, **options})
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config.suppress_tokens = [0, 1, 2]  # words only, up to the last
    model.generation_config.begin_suppress_tokens = model.generation_config.forced_decoder_ids = None
    # Weights so large that what the encoder gives decides which token comes next.
    with torch.no_grad():
        for name, parameter in model.model.decoder.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=2.0 if "encoder_attn" in name else 0.3)
    return model.eval()


def generated(model, inputs, way, **options):
    """Six more tokens."""
    transformers.set_seed(0)
    return model.generate(**inputs, max_new_tokens=6, **{"do_sample": False, **WAYS[way], **options})

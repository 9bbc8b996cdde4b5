"""Tiny Whispers that write, in the ways that `generate` has."""

import dataclasses

import torch
import transformers
from peft import get_peft_model
from tiny import WHISPER, make_inputs, randomize


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


def with_two(base, config, std=1.0, **second):
    """Two adapters, "a" and "b", with weights of their own; `second` are fields of b's configuration."""
    model = get_peft_model(base, config, "a")
    model.add_adapter("b", dataclasses.replace(config, **second))
    for seed, name in enumerate("ab"):
        model.set_adapter(name)
        randomize(model, seed=seed + 2, std=std).eval()
    return model


def check_mixed(model, way, names):
    """Each clip of a batch is recognized as with its own adapter alone; "__base__" is none."""
    inputs, expected = make_inputs("whisper", batch_size=len(names)), {}
    for name in sorted(set(names) - {"__base__"}):
        model.set_adapter(name)
        expected[name] = generated(model, inputs, way)
    with model.disable_adapter():
        expected["__base__"] = generated(model, inputs, way)
    rows = len(expected["a"]) // len(names)
    mixed = generated(model, inputs, way, adapter_names=names)
    for index, name in enumerate(names):
        part = slice(rows * index, rows * (index + 1))
        length = expected[name].shape[1]
        assert torch.equal(mixed[part][:, :length], expected[name][part]), (index, name)
    assert len({tuple(expected[name].flatten().tolist()) for name in set(names)}) > 1  # else nothing was tested

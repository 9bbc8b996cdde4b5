"""How much prompts disturb Whisper tiny.en's encoder before any training, by what they start as.

    python method_comparison/prompt_starts.py

Prints the change of the encoder's output for eight recordings, relative to its norm, for four prompts in each layer.
"""

import argparse

import examples_path
import torch
from peft import get_peft_model
from transformers.utils import logging

from peft_audio import EmbeddingPromptConfig, initialize_prompts, load_classifier
from peft_audio.data import extract_features, load_feature_extractor, model_inputs, read_audiofolder


ASSETS = examples_path.EXAMPLES / "assets"
MODEL, CLIPS = ASSETS / "whisper-tiny.en-encoder", ASSETS / "esc10"
SECONDS, NUM_PROMPTS, NUM_CLIPS = 5, 4, 8


def main() -> dict[str, float]:
    """Prints and returns the changes, by what the prompts start as."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    extractor = load_feature_extractor(MODEL, max_seconds=SECONDS)
    clips = read_audiofolder(CLIPS).clips
    heard, others = clips[:: len(clips) // NUM_CLIPS][:NUM_CLIPS], clips[7 :: len(clips) // NUM_CLIPS][:NUM_CLIPS]
    inputs = {name: spectrograms(part, extractor) for name, part in (("heard", heard), ("others", others))}
    noise = 0.1 * torch.randn(SECONDS * 16000, generator=torch.Generator().manual_seed(0))
    # Digital silence has no sound that an extractor could scale: the faintest noise stands for it.
    sounds = {"tokens of silence": 1e-6 * noise, "tokens of noise": noise}
    batches = {name: batch(wave, extractor) for name, wave in sounds.items()} | {
        "tokens of other clips": inputs["others"]
    }
    changes = {
        "Xavier uniform": change(inputs["heard"], None),
        "Xavier uniform / 100": change(inputs["heard"], None, 0.01),
    }
    changes |= {name: change(inputs["heard"], sound) for name, sound in batches.items()}
    print(
        "\n".join(
            [
                "| prompts start as | change, % |",
                "|---|---|",
                *(f"| {k} | {100 * v:.1f} |" for k, v in changes.items()),
            ]
        )
    )
    return changes


def batch(wave: torch.Tensor, extractor) -> torch.Tensor:
    return torch.from_numpy(model_inputs(wave.numpy(), extractor)["input_features"])[None]


def spectrograms(clips: list, extractor) -> torch.Tensor:
    """`(clips, mel bins, frames)`"""
    features, _ = extract_features(clips, extractor, max_seconds=SECONDS)
    return torch.stack([torch.from_numpy(features[clip.name]["input_features"]) for clip in clips])


@torch.no_grad()
def change(heard: torch.Tensor, start: torch.Tensor | None, scale: float = 1.0) -> float:
    """The change that prompts make which start as tokens of `start`, or for None as they are drawn, times `scale`."""
    torch.manual_seed(0)
    base = load_classifier(MODEL, ["a", "b"], max_seconds=SECONDS).eval()
    alone = base.encoder(heard).last_hidden_state
    model = get_peft_model(base, EmbeddingPromptConfig(num_virtual_tokens=NUM_PROMPTS)).eval()
    if start is not None:
        initialize_prompts(model, {"input_features": start})
    for name, parameter in model.named_parameters():
        if "embedding_prompt_" in name:
            parameter.mul_(scale)
    with_prompts = model.get_base_model().encoder(heard).last_hidden_state
    return ((with_prompts - alone).norm() / alone.norm()).item()


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()

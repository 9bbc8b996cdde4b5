"""What must work where only the wheel and what it needs are installed: an adapter on a tiny AST, trained, saved, loaded."""

import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from transformers import ASTConfig, ASTForAudioClassification

import peft_audio
import peft_audio.data
import peft_audio.metrics
import peft_audio.trainer
from peft_audio import AutoPeftModelForAudioClassification, IPETConfig


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
INPUT = {"max_length": 64, "num_mel_bins": 32}


def main() -> None:
    assert peft_audio.__version__ == version("peft_audio"), version("peft_audio")
    place = Path(peft_audio.__file__)
    assert "site-packages" in place.parts and (place.parent / "py.typed").is_file(), place
    torch.manual_seed(0)
    inputs, labels = torch.randn(4, 64, 32), torch.tensor([0, 1, 2, 0])
    with tempfile.TemporaryDirectory() as folder:
        base = f"{folder}/base"
        ASTForAudioClassification(ASTConfig(**SIZES, **INPUT, num_labels=3)).save_pretrained(base)
        model = get_peft_model(
            ASTForAudioClassification.from_pretrained(base), IPETConfig(num_virtual_tokens=2, bottleneck_dim=4)
        )
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        losses = []
        for _ in range(5):
            losses.append(model(input_values=inputs, labels=labels).loss)
            losses[-1].backward()
            optimizer.step()
            optimizer.zero_grad()
        assert losses[-1] < losses[0], losses
        model.eval().save_pretrained(f"{folder}/adapter")
        plain = ASTForAudioClassification.from_pretrained(base)
        with torch.no_grad():
            expected = model(input_values=inputs).logits
            for again in (
                PeftModel.from_pretrained(plain, f"{folder}/adapter"),
                AutoPeftModelForAudioClassification.from_pretrained(f"{folder}/adapter"),
            ):
                torch.testing.assert_close(again.eval()(input_values=inputs).logits, expected)
    print(f"peft_audio {version('peft_audio')} in {place.parents[1]}: trained, saved and loaded an adapter")


if __name__ == "__main__":
    main()

"""Speaker embeddings: the narrow layer in front of the head that names speakers, which is compared in verification."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from peft_audio import head_modules


class SpeakerHead(nn.Module):
    """The head of IPET's speaker verification: a linear layer to the embedding, a norm, one to the speakers.

    Args:
        input_size: width of the pooled features.
        code_size: width of the speaker embedding.
        num_labels: number of speakers in training.
    """

    def __init__(self, input_size: int, code_size: int, num_labels: int) -> None:
        super().__init__()
        self.code = nn.Linear(input_size, code_size)  # the speaker embedding; checkpoints have it under this name
        self.norm = nn.LayerNorm(code_size)
        self.speakers = nn.Linear(code_size, num_labels)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Map pooled features `(batch, input_size)` to logits `(batch, num_labels)`."""
        return self.speakers(self.norm(self.code(pooled)))


def use_speaker_embeddings(model: PreTrainedModel, code_size: int = 128) -> PreTrainedModel:
    """Put a `SpeakerHead` in the place of the classifier's last module, in place. Call it before `get_peft_model`."""
    *_, name = head_modules(model)
    first = next(module for module in getattr(model, name).modules() if isinstance(module, nn.Linear))
    head = SpeakerHead(first.in_features, code_size, model.config.num_labels)
    setattr(model, name, head.to(device=first.weight.device, dtype=first.weight.dtype))
    return model


@contextmanager
def speaker_embeddings_of(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Within, every call of the model appends its clips' speaker embeddings, `(batch, code_size)`, to the list."""
    embeddings: list[torch.Tensor] = []
    hooks = [
        module.code.register_forward_hook(lambda module, args, output: embeddings.append(output.detach()))
        for module in model.modules()
        if isinstance(module, SpeakerHead)
    ]
    try:
        yield embeddings
    finally:
        for hook in hooks:
            hook.remove()

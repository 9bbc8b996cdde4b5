"""A small task to train on."""

import torch
from tiny import make_inputs
from torch.utils.data import Dataset


class Clips(Dataset):
    """Twelve clips, those of three steps of four, whose label is told by their level."""

    def __init__(self, backbone):
        inputs = make_inputs(backbone, batch_size=12)["input_values"]
        self.labels = torch.arange(12) % 2
        self.inputs = inputs + 2.0 * self.labels.reshape(-1, *[1] * (inputs.dim() - 1))

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"input_values": self.inputs[index], "labels": self.labels[index]}

"""Tiny models of every task class that transformers has for the encoders of this package, and their inputs."""

import functools
import subprocess
import sys
import tempfile

import pytest
import torch
import transformers
from tiny import ARCHITECTURES, HIDDEN_SIZE, NUM_LABELS, NUM_LAYERS, make_inputs


CLASSES = 5
VOCABULARY = 11  # of the new task; the tiny base models have 8
XVECTOR = {
    "tdnn_dim": (16, 16, 24),
    "tdnn_kernel": (3, 2, 1),
    "tdnn_dilation": (1, 1, 1),
    "xvector_output_dim": 12,
}
PREFIXES = {
    "data2vec-audio": "Data2VecAudio",
    "hubert": "Hubert",
    "sew": "SEW",
    "sew-d": "SEWD",
    "unispeech": "UniSpeech",
    "unispeech-sat": "UniSpeechSat",
    "wav2vec2": "Wav2Vec2",
    "wav2vec2-bert": "Wav2Vec2Bert",
    "wav2vec2-conformer-relative": "Wav2Vec2Conformer",
    "wavlm": "WavLM",
}
AUTO = {
    "ForCTC": "AutoPeftModelForCTC",
    "ForXVector": "AutoPeftModelForAudioXVector",
    "ForAudioFrameClassification": "AutoPeftModelForAudioFrameClassification",
}
TASKS = {
    "ForCTC": {"vocab_size": VOCABULARY, "pad_token_id": 0},
    "ForXVector": {"num_labels": CLASSES, **XVECTOR},
    "ForAudioFrameClassification": {"num_labels": CLASSES},
}
CASES = [
    (backbone, task) for backbone, prefix in PREFIXES.items() for task in TASKS if hasattr(transformers, prefix + task)
]
each_task = pytest.mark.parametrize("backbone, task", CASES)


@functools.cache
def base_folder(backbone):
    """A folder with the tiny bare encoder of this type, as a pretrained model is published."""
    folder = tempfile.mkdtemp()
    config_name, _, encoder_name, options = ARCHITECTURES[backbone]
    sizes = {} if backbone == "whisper" else {"hidden_size": HIDDEN_SIZE, "num_hidden_layers": NUM_LAYERS}
    config = getattr(transformers, config_name)(**sizes, **options)
    torch.manual_seed(0)
    # A Whisper is published with its decoder.
    encoder_name = "WhisperModel" if backbone == "whisper" else encoder_name
    getattr(transformers, encoder_name)(config).save_pretrained(folder)
    return folder


def load(backbone, task, seed=0, **options):
    """The base model with a new head for a task, loaded as a user does."""
    torch.manual_seed(seed)
    cls = getattr(transformers, PREFIXES[backbone] + task)
    return cls.from_pretrained(base_folder(backbone), **TASKS[task], **options)


def inputs_of(backbone, task):
    """Inputs, longer for x-vectors, with labels."""
    inputs = dict(make_inputs(backbone))
    name = next(iter(inputs))
    with torch.no_grad():
        frames = load(backbone, task)(**inputs).logits.shape[1]
    labels = {
        "ForCTC": torch.tensor([[1, 2], [3, 4]]),
        "ForXVector": torch.tensor([0, 3]),
        "ForAudioFrameClassification": torch.nn.functional.one_hot(
            torch.arange(2 * frames).view(2, -1) % CLASSES, CLASSES
        ),
    }
    assert inputs[name].shape[0] == 2 and NUM_LABELS
    return {**inputs, "labels": labels[task]}


def outputs_in_a_new_process(auto_class, folder, inputs):
    """The logits that an adapter gives after loading it in one line, in another process."""
    torch.save(inputs, folder / "inputs.pt")
    code = f"""
import torch, peft_audio
model = peft_audio.{auto_class}.from_pretrained({str(folder)!r})
with torch.no_grad():
    torch.save(model(**torch.load({str(folder / "inputs.pt")!r})).logits, {str(folder / "outputs.pt")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    return torch.load(folder / "outputs.pt")

"""Every audio classifier of transformers through the whole training script, on clips with several labels.

Many of these classifiers compute no loss, or a wrong one, from several labels a clip; the script must not rely on it.
"""

import math

import pytest
import soundfile
import torch
import train_classification
from runs import arguments
from sounds import save_model, tone
from tiny import make
from train_classification import apply_method
from transformers import AutoFeatureExtractor
from transformers.models.auto.modeling_auto import MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES

from peft_audio import AutoPeftModelForAudioClassification, supported_backbones


ARCHITECTURES = (
    *("ast", "data2vec-audio", "hubert", "sew", "sew-d", "unispeech", "unispeech-sat", "wav2vec2", "wav2vec2-bert"),
    *("wav2vec2-conformer-relative", "wavlm", "whisper"),
)
# Of different lengths, so that batches are padded: file name, seconds, labels, split.
CLIPS = [
    ("a", 0.5, "high;tonal", "train"),
    ("b", 0.3, "low;tonal", "train"),
    ("c", 0.4, "noise", "train"),
    ("d", 0.3, "high;noise;tonal", "test"),
    ("e", 0.5, "low", "test"),
    ("f", 0.4, "noise", "test"),
]
LABELS = ["high", "low", "noise", "tonal"]
# Convolutions of these see the padding, whatever the attention mask says: a clip alone has other logits.
WITHOUT_MASKED_CONVOLUTIONS = ("data2vec-audio", "wav2vec2-conformer-relative")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    (folder / "data").mkdir()
    lines = ["file_name,label,split"]
    for index, (name, seconds, labels, split) in enumerate(CLIPS):
        pitch = labels.partition(";")[0].replace("noise", "middle")
        soundfile.write(folder / "data" / f"{name}.wav", tone(pitch, seconds, seed=index), 16000)
        lines.append(f"{name}.wav,{labels},{split}")
    (folder / "data" / "metadata.csv").write_text("\n".join(lines))
    return folder


def loss_by_hand(model, extractor, folder, alone=True):
    """The mean binary cross-entropy of the test clips, each alone in its batch or all in one."""
    clips = [(name, labels) for name, _, labels, split in CLIPS if split == "test"]
    waveforms = [soundfile.read(folder / f"{name}.wav", dtype="float32")[0] for name, _ in clips]
    batches = [extractor(wave, sampling_rate=16000, return_tensors="pt") for wave in waveforms]
    if not alone:
        batches = [extractor(waveforms, sampling_rate=16000, padding=True, return_tensors="pt")]
    with torch.no_grad():
        scores = [row for inputs in batches for row in model.eval()(**inputs).logits.sigmoid().tolist()]
    targets = [[label in labels.split(";") for label in LABELS] for _, labels in clips]
    terms = [
        math.log(score if there else 1 - score)
        for row, present in zip(scores, targets, strict=True)
        for score, there in zip(row, present, strict=True)
    ]
    return -sum(terms) / len(terms)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_model_trains_on_several_labels_a_clip(workspace, tmp_path, monkeypatch, architecture):
    path = save_model(tmp_path / "base", architecture)
    extractor, alone = AutoFeatureExtractor.from_pretrained(path), architecture not in WITHOUT_MASKED_CONVOLUTIONS
    before = []

    def watched(*args, **options):
        model = apply_method(*args, **options)
        if model.config.num_labels == len(LABELS):  # else it was made before the data were read
            before.append(loss_by_hand(model, extractor, workspace / "data", alone))
        return model

    monkeypatch.setattr(train_classification, "apply_method", watched)
    monkeypatch.setattr(train_classification, "plot_curves", lambda *args: None)  # half of the time of a run
    more = ("--model_name_or_path", path, "--learning_rate", "0.01", "--lr_scheduler_type", "constant")
    more += ("--warmup_steps", "0", "--save_strategy", "no", "--eval_strategy", "no")
    out = tmp_path / "out"
    results = train_classification.main(arguments(workspace, out, *more, method="parallel_mlp"))
    model = AutoPeftModelForAudioClassification.from_pretrained(str(out))
    assert list(model.config.id2label.values()) == LABELS
    after = loss_by_hand(model, extractor, workspace / "data", alone)
    assert results["eval_loss"] == pytest.approx(after, abs=1e-4)
    assert abs(results["eval_loss"] - before[0]) > 1e-3


def test_no_audio_classifier_of_transformers_is_left_out():
    tested = {make(architecture).config.model_type for architecture in ARCHITECTURES}
    assert len(tested) == len(ARCHITECTURES)
    assert set(MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES) & set(supported_backbones()) == tested

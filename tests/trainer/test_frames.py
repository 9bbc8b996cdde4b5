"""Where a model's frames lie, found without the formula: by what each sample changes; and metrics over frames."""

import numpy as np
import pytest
import torch
from events import FRAME_TYPES
from sklearn.metrics import average_precision_score, f1_score
from sounds import EXTRACTORS
from tasks import load
from tiny import make
from transformers import EvalPrediction, Wav2Vec2FeatureExtractor

from peft_audio.data import model_inputs
from peft_audio.trainer.frames import frame_grid, frame_metrics
from peft_audio.trainer.linear_probe import head_features


TASK = "ForAudioFrameClassification"


@pytest.mark.parametrize("backbone", FRAME_TYPES)
@torch.no_grad()
def test_the_grid_has_the_frames_that_the_model_makes(backbone):
    model, extract = load(backbone, TASK).eval(), EXTRACTORS.get(backbone, Wav2Vec2FeatureExtractor)()
    grid = frame_grid(model, extract)
    for length in (*range(800, 1000, 13), 4001):
        noise = np.random.default_rng(length).normal(size=length).astype(np.float32)
        inputs = model_inputs(noise, extract)
        logits = model(**{name: torch.from_numpy(value)[None] for name, value in inputs.items()}).logits
        assert grid.counts(inputs)[0] == logits.shape[1]


@pytest.mark.parametrize("backbone", [name for name in FRAME_TYPES if name != "wav2vec2-bert"])
@torch.no_grad()
def test_a_frame_sees_its_window_and_nothing_else(backbone):
    model = load(backbone, TASK).eval()
    grid, waveform = frame_grid(model, Wav2Vec2FeatureExtractor()), torch.randn(1, 400)
    encode = model.base_model.feature_extractor
    before = encode(waveform)
    for sample in (0, 44, 45, 150, 399):
        changed = waveform.clone()
        changed[0, sample] += 1
        seen = (encode(changed) != before).any(dim=1)[0].nonzero().flatten().tolist()
        start = grid.hop * 16000 * np.arange(before.shape[2])
        assert seen == np.flatnonzero((start <= sample) & (sample < start + grid.window * 16000)).tolist()


def test_rows_of_a_spectrogram_are_joined_to_frames():
    extract = EXTRACTORS["wav2vec2-bert"]()
    grid = frame_grid(load("wav2vec2-bert", TASK), extract)
    # The window is 25 ms long, the next begins 10 ms later, and two are joined.
    assert (grid.window, grid.hop) == pytest.approx((0.035, 0.020))
    click = np.random.default_rng(0).normal(0, 1e-3, 16000).astype(np.float32)
    click[8000] = 1  # 0.5 s
    frames = model_inputs(click, extract)["input_features"]
    loudest = np.abs(frames - np.median(frames, axis=0)).sum(axis=1).argmax()
    assert abs(grid.hop * loudest + grid.window / 2 - 0.5) < grid.window / 2


def test_a_model_without_a_number_of_frames_is_refused():
    with pytest.raises(ValueError, match="can tell its number of frames, got a ASTForAudioClassification"):
        frame_grid(make("ast"), None)


def test_metrics_are_of_the_frames_that_are_no_padding():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(3, 7, 2)), rng.integers(0, 2, size=(3, 7, 2)).astype(float)
    known = np.ones((3, 7), dtype=bool)
    known[1, 4:], known[2, 2:] = False, False
    logits[~known], targets[~known] = -100, -100
    values = frame_metrics(EvalPrediction((logits, "hidden"), targets))
    assert values["map"] == pytest.approx(average_precision_score(targets[known], logits[known], average="macro"))
    assert values["micro_f1"] == pytest.approx(f1_score(targets[known], logits[known] > 0, average="micro"))
    assert frame_metrics(EvalPrediction(logits[known], targets[known])) == values


def test_without_an_event_the_precision_is_no_number():
    values = frame_metrics(EvalPrediction(np.zeros((1, 4, 2)), np.zeros((1, 4, 2))))
    assert np.isnan(values["map"]) and values["micro_f1"] == 0


@torch.no_grad()
def test_a_probe_reads_each_frame_that_is_no_padding():
    model, batch = load("wav2vec2", TASK).eval().requires_grad_(False), {"input_values": torch.randn(2, 400)}
    states = model.wav2vec2(**batch).last_hidden_state
    labels = torch.zeros(*states.shape[:2], 3)
    labels[1, -5:] = -100
    features, targets = head_features(model, [{**batch, "labels": labels}])
    expected = torch.cat([states[0], states[1, :-5]])
    np.testing.assert_allclose(features, expected.numpy(), atol=1e-5)
    assert targets.shape == (len(expected), 3) and not targets.any()

import json
from pathlib import Path

import demo_small as demo
import numpy as np
import pretrain_backbone as pretraining
import pytest
import soundfile
import synthetic_sounds as sounds
import torch
from pretraining.clips import Clips, LogMel
from pretraining.textures import texture_statistics, texture_targets
from transformers import ASTFeatureExtractor, ASTForAudioClassification, AutoFeatureExtractor


QUICK = "--steps 4 --batch_size 4 --num_clips 16 --num_probe_clips 32 --save_steps 2 --texture_size 8 --hidden_size 32"
QUICK = [*QUICK.split(), "--num_hidden_layers", "1"]
BUNDLED = Path(demo.BACKBONE)


@pytest.mark.parametrize("seconds", [1.0, 5.0, 5.12, 6.5])
def test_fast_features_equal_the_extractors(seconds):
    rng = np.random.default_rng(0)
    waveform = np.resize(sounds.generate_any(rng, whole=True).waveform, int(seconds * 16_000))
    extractor = ASTFeatureExtractor(num_mel_bins=64, max_length=512, do_normalize=False)
    expected = extractor(waveform, sampling_rate=16_000, return_tensors="np").input_values[0]
    features, frames = LogMel()(waveform)
    np.testing.assert_allclose(features, expected, atol=1e-4)
    assert frames == min(512, (len(waveform) - 400) // 160 + 1)


@pytest.fixture(scope="module")
def quick_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quick")
    pretraining.main(["--output_dir", str(folder), *QUICK])
    return folder


def test_quick_pretraining_writes_a_model_that_loads_and_runs(quick_folder):
    model = ASTForAudioClassification.from_pretrained(quick_folder)
    extractor = AutoFeatureExtractor.from_pretrained(quick_folder)
    clip = sounds.generate_any(np.random.default_rng(9)).waveform
    logits = model(**extractor(clip, sampling_rate=16_000, return_tensors="pt")).logits
    assert logits.shape == (1, len(sounds.SOURCES) + len(sounds.PATTERNS)) and logits.isfinite().all()
    assert model.config.id2label[0] == next(iter(sounds.SOURCES))


def test_pretraining_is_reproducible(quick_folder, tmp_path):
    result = pretraining.main(["--output_dir", str(tmp_path), *QUICK])
    assert result["step"] == 4
    first, second = (
        ASTForAudioClassification.from_pretrained(folder).state_dict() for folder in (quick_folder, tmp_path)
    )
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=0, msg=name)


def test_another_seed_gives_another_model(quick_folder, tmp_path):
    pretraining.main(["--output_dir", str(tmp_path), *QUICK, "--seed", "1"])
    first, second = (ASTForAudioClassification.from_pretrained(folder) for folder in (quick_folder, tmp_path))
    assert not torch.equal(first.classifier.dense.weight, second.classifier.dense.weight)


def test_stored_features_are_used_again(tmp_path, capsys):
    file = tmp_path / "features.npz"
    arguments = pretraining.Arguments(output_dir="", num_clips=3, num_probe_clips=4, features_file=str(file))
    first, _ = pretraining.load_or_generate(arguments)
    again, _ = pretraining.load_or_generate(arguments)
    torch.testing.assert_close(first.features, again.features, rtol=0, atol=0)
    assert torch.equal(first.labels, again.labels)
    with pytest.raises(
        ValueError,
        match="`features_file` must hold 3 pretraining and 5 held-out clips of seed 0, got 3 pretraining and 4",
    ):
        pretraining.load_or_generate(
            pretraining.Arguments(output_dir="", num_clips=3, num_probe_clips=5, features_file=str(file))
        )


def test_statistics_leave_padding_out():
    features = torch.zeros(2, 512, 64)
    features[0, :100], features[1, :300] = 1.0, 5.0
    clips = Clips(features.half(), torch.tensor([100, 300]), torch.ones(2, 1, dtype=torch.bool))
    mean, std = clips.statistics()
    assert mean == pytest.approx(4.0) and std == pytest.approx(3**0.5)


def test_texture_statistics_tell_slow_from_fast_modulation():
    time = torch.arange(512)[:, None] / 100
    slow, fast = (torch.sin(2 * torch.pi * rate * time).expand(512, 64) for rate in (1.0, 20.0))
    statistics = texture_statistics(torch.stack([slow, fast]))
    modulation = statistics[:, 144:272].unflatten(1, (16, 8))
    assert modulation[0, 0].argmax() == 2 and modulation[1, 0].argmax() == 6  # 0.8 to 1.6 Hz, 12.5 to 25 Hz


def test_texture_targets_are_uncorrelated():
    clips = Clips(torch.randn(300, 512, 64).half(), torch.full((300,), 512), torch.ones(300, 1).bool())
    targets = texture_targets(clips, 6)
    covariance = targets.T @ targets / 300
    assert targets.shape == (300, 6)
    torch.testing.assert_close(covariance, covariance.diag().diag(), atol=1e-3, rtol=0)


def test_patch_dropout_keeps_special_tokens_and_whole_columns():
    embeddings = torch.arange(2 + 4 * 32.0)[None, :, None]
    dropout = pretraining.PatchDropout(4, 32, kept_columns=5, seed=0)
    kept = dropout(torch.nn.Identity().train(), None, embeddings)[0, :, 0]
    assert kept[:2].tolist() == [0, 1]
    patches = (kept[2:] - 2).view(4, 5)
    columns = patches[0]
    torch.testing.assert_close(patches, columns + 32 * torch.arange(4.0)[:, None])
    assert dropout(torch.nn.Identity().eval(), None, embeddings) is embeddings


@pytest.mark.parametrize("name, value", [("steps", 0), ("kept_columns", 33), ("batch_size", -1)])
def test_unusable_arguments_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must .*, got {value}"):
        pretraining.Arguments(output_dir="", **{name: value})


def test_probe_chooses_nothing_on_the_test_fold_and_reports_each_fold():
    rng = np.random.default_rng(0)
    labels, folds = np.tile(["a", "b"], 20), np.repeat([1, 2, 3, 4], 10)
    features = rng.normal(size=(40, 3))
    features[:, 0] += 10 * (labels == "a")
    assert pretraining.fold_accuracies(features, labels, folds) == [1.0, 1.0, 1.0, 1.0]


def write_recordings(folder, columns):
    rows = ["file_name,label,fold"[: None if "fold" in columns else -5]]
    for index in range(12):
        soundfile.write(folder / f"{index}.wav", 0.1 * np.random.default_rng(index).standard_normal(16_000), 16_000)
        rows.append(",".join([f"{index}.wav", "ab"[index % 2], str(index // 4)][: len(columns)]))
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")


def test_probe_mode_reads_an_audiofolder(quick_folder, tmp_path):
    write_recordings(tmp_path, ("file_name", "label", "fold"))
    result = pretraining.main(["--output_dir", str(quick_folder), "--probe", str(tmp_path)])
    assert set(result) == {"pretrained", "untrained"}
    assert all(len(part["folds"]) == 3 for part in result.values())


def test_probe_needs_folds(quick_folder, tmp_path):
    write_recordings(tmp_path, ("file_name", "label"))
    with pytest.raises(ValueError, match="needs a column 'fold'"):
        pretraining.main(["--output_dir", str(quick_folder), "--probe", str(tmp_path)])


def test_the_bundled_backbone_is_the_one_described():
    model = ASTForAudioClassification.from_pretrained(BUNDLED)
    assert (model.config.max_length, model.config.num_mel_bins, model.config.hidden_size) == (512, 64, 128)
    assert tuple(model.config.id2label.values()) == pretraining.LABELS
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert sum(file.stat().st_size for file in BUNDLED.iterdir()) < 8_000_000
    preprocessor = json.loads((BUNDLED / "preprocessor_config.json").read_text())
    assert (preprocessor["max_length"], preprocessor["num_mel_bins"]) == (512, 64)


def test_the_demonstrations_task_is_unseen_in_pretraining():
    assert set(demo.SOURCES) <= set(sounds.HELD_OUT_SOURCES)
    assert set(demo.PATTERNS) <= set(sounds.HELD_OUT_PATTERNS)

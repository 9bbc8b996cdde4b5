"""The row of the whole pipeline: parts, epochs from files, and what holds them up."""

import pytest
import torch
from benchmarking import pipeline, subjects
from benchmarking.measure import Precision
from transformers import ASTConfig, ASTForAudioClassification


@pytest.fixture
def small(monkeypatch):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    monkeypatch.setattr(
        subjects.Input, "make_model", lambda self: ASTForAudioClassification(ASTConfig(num_labels=2, **sizes))
    )
    monkeypatch.setattr(pipeline, "SIZES", {"cpu": (4, 2)})
    monkeypatch.setattr(pipeline, "SECONDS", 0.5)


def test_every_part_and_every_way_is_told(small, monkeypatch):
    monkeypatch.setattr(pipeline, "torchaudio_fbank", lambda: None)
    found = list(pipeline.pipeline(Precision("cpu"), 1))
    assert all(outcome.value > 0 for outcome in found)
    names = [outcome.name for outcome in found]
    assert [name.split(":")[0] for name in names[:3]] == [kind.__name__ for kind in pipeline.EXTRACTORS]
    parts = ["decoding", "features", "reading cached features", "step"]
    assert [name.split("clips: ")[1] for name in names[3:7]] == parts
    ways = [name.split("steps, ")[1].split(" (")[0] for name in names[7:]]
    assert ways == ["1 worker", "2 workers", "cached features"]
    assert all(any(f"(bottleneck: {part})" in name for part in parts) for name in names[7:])
    assert {outcome.unit for outcome in found[3:]} == {"clips/s"}


def test_torchaudio_is_compared_where_it_can_be_imported(small, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        pipeline, "torchaudio_fbank", lambda: lambda samples, **options: seen.append((samples.shape, options))
    )
    clip = pipeline.write_clips(tmp_path / "clips", 1)[0]
    first, second, *others = pipeline.features(clip, 1, Precision("cpu"))
    assert first.target == 20 and second.target == 1 and "torchaudio" in second.name and len(others) == 2
    shape, options = seen[0]
    assert shape == (1, 8000) and options["num_mel_bins"] == 128 and options["window_type"] == "hanning"


def test_the_bottleneck_is_what_the_others_wait_for():
    seconds = {"decoding": 1.0, "features": 3.0, "reading cached features": 0.5, "step": 2.1}
    needs = ["decoding", "features"]
    assert pipeline.slowest(seconds, needs, 1) == "features"
    assert pipeline.slowest(seconds, needs, 2) == "step"
    assert pipeline.slowest({**seconds, "decoding": 9.0}, needs, 2) == "decoding"
    assert pipeline.slowest(seconds, ["reading cached features"], 0) == "step"


def test_one_core_is_given_back_after_an_error():
    threads = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        pipeline.on_one_core(lambda: 1 / 0)()
    assert torch.get_num_threads() == threads

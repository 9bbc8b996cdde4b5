"""The comparison on a real model, on a tiny one: what is run, what is kept, and what the tables say."""

import json

import pytest
import real_model
import real_model_rates
from comparison_runs import read_records
from real_model import Run, Source, draw, main, wanted_runs
from real_model_rates import Trial
from real_model_report import difference, interval, recommendations, table, with_cpu_seconds
from real_model_rows import EPOCHS, ROWS
from sounds import save_model, write_tones
from tiny import NUM_LAYERS

from peft_audio.data import read_audiofolder
from peft_audio.trainer import METHODS, UsageError, apply_method, make_config, parameter_counts


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    write_tones(folder / "data", clips=18, folds=3)
    save_model(folder / "whisper", "whisper", max_source_positions=250)
    return folder


def command(workspace, out, *more):
    model, data = str(workspace / "whisper"), str(workspace / "data")
    return ["--model_name_or_path", model, "--data_dir", data, "--output_dir", str(out), "--folds", "1", "2", *more]


def test_an_interrupted_comparison_goes_on_where_it_was(workspace, tmp_path, monkeypatch, capsys):
    more = ("--methods", "linear_probe", "ipet", "--shots", "1", "2")
    records = main(command(workspace, tmp_path, *more, "--seeds", "0"))
    assert {(record["row"], record["shots"], record["fold"]) for record in records} == {
        (row, shots, "1") for row in ("linear_probe", "ipet") for shots in (1, 2)
    }
    for record in records:
        assert len(record["labels"]) == len(record["predicted"]) == 6
        right = sum(a == b for a, b in zip(record["labels"], record["predicted"]))
        assert record["accuracy"] == pytest.approx(right / 6)
    path = tmp_path / "results.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:3]) + "\n" + lines[3][:40])  # killed while it wrote
    assert len(read_records(path)) == 3
    assert len(main(command(workspace, tmp_path, *more, "--seeds", "0"))) == 4
    assert [json.loads(line)["row"] for line in path.read_text().splitlines()].count("ipet") == 2
    capsys.readouterr()
    main(["--output_dir", str(tmp_path), "--table", "--plot", str(tmp_path / "shots.png")])
    printed = capsys.readouterr().out
    assert "1 training clips a class" in printed and ROWS["ipet"].title in printed
    assert (tmp_path / "shots.png").stat().st_size > 1000


def test_rates_are_tried_on_other_folds_than_those_that_are_tested(workspace, tmp_path, monkeypatch, capsys):
    for name in ("TRAINING_FOLDS", "JUDGING_FOLDS"):
        monkeypatch.setattr(real_model_rates, name, {"TRAINING_FOLDS": ("2",), "JUDGING_FOLDS": ("3",)}[name])
    seen = []
    monkeypatch.setattr(real_model_rates, "fit", lambda *given: seen.append(given) or {"accuracy": 0.5})
    train = real_model_rates.train
    for row, rate in (("ipet", 1e-2), ("linear_probe", 1e-4)):
        source = Source(str(workspace / "whisper"), str(workspace / "data"), str(tmp_path / "features"))
        record = train(source, Trial(row, rate, 3))
        assert record == {"row": row, "learning_rate": rate, "seed": 3, "accuracy": 0.5}
    (_, ipet, parts, epochs, seed), (_, probe, _, _, _) = seen
    assert [{clip.fold for clip in part} for part in parts] == [{"2"}, {"3"}] and (epochs, seed) == (EPOCHS[16], 3)
    assert (ipet.learning_rate, ipet.head_learning_rate) == (1e-2, ROWS["ipet"].head_learning_rate)
    assert probe.head_learning_rate == 1e-4


def test_the_table_of_rates_marks_those_that_the_rows_have(workspace, tmp_path, capsys):
    def trial(rate, accuracy, seed):
        return {
            "row": "ipet",
            "learning_rate": rate,
            "seed": seed,
            "accuracy": accuracy,
            "test_loss": 0.5,
            "train_loss": 0.1,
        }

    own = ROWS["ipet"].learning_rate
    records = [trial(3 * own, 0.5, 0), trial(own, 0.5, 0), trial(own, 0.7, 1)]
    header, rows = real_model_rates.table(records)
    assert rows == [
        [ROWS["ipet"].title, f"**{own:g}**", "60.0", "0.50", "0.100", "2"],
        [ROWS["ipet"].title, f"{3 * own:g}", "50.0", "0.50", "0.100", "1"],
    ]
    assert len(header) == len(rows[0])
    with pytest.raises(UsageError, match="data_dir"):
        real_model_rates.main(["--output_dir", str(tmp_path)])


def test_whole_training_sets_run_on_every_fold(workspace):
    given = {"output_dir": "out", "data_dir": str(workspace / "data"), "folds": ["1", "2"], "methods": ["ipet"]}
    args = real_model.Arguments(**given, seeds=[0, 1])
    assert wanted_runs(args) == [Run("ipet", None, fold, seed) for seed in (0, 1) for fold in ("1", "2")]
    args = real_model.Arguments(**given, seeds=[0, 1, 2], shots=[4])
    assert [run.fold for run in wanted_runs(args)] == ["1", "2", "1"]


def test_a_draw_is_the_same_for_every_method_and_grows(workspace):
    clips = read_audiofolder(workspace / "data").clips
    two, four = draw(clips, 2, seed=3), draw(clips, 4, seed=3)
    assert [clip.name for clip in draw(clips, 2, seed=3)] == [clip.name for clip in two]
    assert {clip.name for clip in two} < {clip.name for clip in four}
    assert [clip.labels for clip in two].count(two[0].labels) == 2 and len(two) == 6
    assert draw(clips, None, seed=3) == clips


def test_every_row_is_one_of_the_training_script():
    for name, row in ROWS.items():
        make_config(row.method, **row.options)
        assert row.method in METHODS, name
    assert set(EPOCHS) == {1, 2, 4, 8, 16, None}


def test_lora_has_the_size_of_ipet():
    from transformers import WhisperConfig, WhisperForAudioClassification

    sizes = {"d_model": 384, "encoder_layers": 4, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536}

    def trainable(row):
        model = WhisperForAudioClassification(WhisperConfig(**sizes, decoder_layers=1, num_labels=10))
        return parameter_counts(apply_method(model, ROWS[row].method, **ROWS[row].options))["trainable_parameters"]

    assert trainable("lora") == pytest.approx(trainable("ipet"), rel=0.01)


def record(row, fold, predicted, seed=0, shots=None):
    labels = [0, 1, 2, 3]
    accuracy = sum(a == b for a, b in zip(labels, predicted)) / 4
    more = {"labels": labels, "predicted": predicted, "trainable_parameters": 7, "seconds": 1.0, "device": "a GPU"}
    return {"row": row, "fold": fold, "seed": seed, "shots": shots, "accuracy": accuracy, **more}


def test_differences_are_paired_over_the_runs_that_both_have():
    records = [
        record("linear_probe", "1", [0, 1, 2, 0]),
        record("ipet", "1", [0, 1, 2, 3]),
        record("ipet", "2", [9] * 4),
    ]
    assert difference(records, "ipet", "linear_probe").startswith("+25.0 (")
    assert difference(records, "ipet", "ipet") == difference(records, "ipet", "lora") == "-"
    header, rows = table(records)
    assert [row[header.index("runs")] for row in rows] == ["1", "2"]


def test_the_fastest_that_is_not_worse_for_certain_is_taken():
    def runs(row, right, seconds):
        predicted = [0, 1, 2, 3] if right == 4 else [0, 1, 2, 0] if right == 3 else [1, 2, 3, 0]
        return [record(row, fold, predicted) | {"seconds": seconds} for fold in "12345"]

    records = runs("ipet", 4, 90.0) + runs("lora", 3, 50.0) + runs("linear_probe", 0, 5.0)
    header, rows = recommendations(records)
    assert len(rows) == 1 and len(rows[0]) == len(header)
    shots, minute, three, ten, fast = rows[0]
    assert shots == "all (32)" and minute == f"{ROWS['lora'].title}: 75.0 %, 50 s"
    assert three == ten == f"{ROWS['ipet'].title}: 100.0 %, 90 s"
    # One clip in four of LoRA's is wrong, in every fold: a difference that no draw of clips turns around.
    assert fast == three
    close = runs("ipet", 4, 90.0) + [*runs("lora", 4, 50.0)[:4], record("lora", "5", [0, 1, 2, 0]) | {"seconds": 50.0}]
    assert recommendations(close)[1][0][4].startswith(ROWS["lora"].title)
    slow = [r | {"seconds": 70.0} for r in records]
    assert recommendations(slow)[1][0][1] == "-"


def test_runs_cost_what_the_timed_ones_did_a_clip_and_epoch():
    timed = [{"row": "ipet", "seconds": seconds, "training_clips": 40, "epochs": 15} for seconds in (60.0, 180.0)]
    ipet, lora = (
        record(row, "1", [0] * 4) | {"training_clips": 320, "epochs": 6, "seconds": 1.0} for row in ("ipet", "lora")
    )
    assert with_cpu_seconds([ipet], timed)[0]["seconds"] == pytest.approx(0.2 * 320 * 6)
    assert with_cpu_seconds([lora], timed)[0]["seconds"] != with_cpu_seconds([lora], timed)[0]["seconds"]  # unknown
    assert with_cpu_seconds([ipet | {"device": "CPU", "seconds": 77.0}], timed)[0]["seconds"] == 77


def test_the_interval_is_over_clips():
    certain = {("1", index): [1.0] for index in range(50)}
    assert interval([certain]) == (100.0, 100.0)
    half = {("1", index): [float(index % 2)] for index in range(400)}
    low, high = interval([half])
    assert 44 < low < 46 and 54 < high < 56  # 50 +- 1.96 * 50 / 20
    assert interval([half, half]) == (0.0, 0.0)


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(UsageError, match="--data_dir is missing"):
        main(["--output_dir", str(tmp_path)])
    with pytest.raises(UsageError, match="--table: there is no"):
        main(["--output_dir", str(tmp_path), "--table"])


@pytest.mark.parametrize("row", ["linear_probe", "side_mlp", "side_conv"])
def test_rows_that_are_trained_from_cached_states_learn_the_same(workspace, tmp_path, monkeypatch, row):
    source = Source(str(workspace / "whisper"), str(workspace / "data"), str(tmp_path / "features"))
    clips = read_audiofolder(workspace / "data").clips
    parts = ([clip for clip in clips if clip.fold != "1"], [clip for clip in clips if clip.fold == "1"])
    kept, calls = real_model.fit(source, ROWS[row], parts, epochs=2, seed=0), []
    monkeypatch.setattr(real_model, "CACHED", ())
    monkeypatch.setattr(real_model, "cache_frozen", lambda *given: calls.append(given))
    computed = real_model.fit(source, ROWS[row], parts, epochs=2, seed=0)
    assert not calls and kept["train_loss"] == pytest.approx(computed["train_loss"], abs=1e-3)


def test_the_weighted_layer_sum_is_trained(workspace, tmp_path):
    source = Source(str(workspace / "whisper"), str(workspace / "data"), str(tmp_path / "features"))
    clips = read_audiofolder(workspace / "data").clips
    sizes = {
        row: real_model.fit(source, ROWS[row], (clips[:4], clips[4:8]), epochs=1, seed=0)["trainable_parameters"]
        for row in ("linear_probe", "layer_sum")
    }
    # A weight for the input of the first layer, and one for the output of each.
    assert sizes["layer_sum"] - sizes["linear_probe"] == NUM_LAYERS + 1

import json

import esc10
import pytest
from clip_table import DataError
from esc10 import (
    Arguments,
    Run,
    UsageError,
    by_run,
    join_settings,
    main,
    make_settings,
    ready_runs,
    summarize,
    table_rows,
)
from methods import apply_method
from sounds import save_ast, write_tones
from train_classification import load_model, parameter_counts


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    write_tones(folder / "data", clips=27, folds=3)
    save_ast(folder / "ast")
    return folder


def command(workspace, out, *more):
    return [
        *("--data_dir", str(workspace / "data"), "--model_name_or_path", str(workspace / "ast")),
        *("--output_dir", str(out), "--folds", "1", "2", "--seeds", "0", "1", "--epochs", "1"),
        *("--methods", "linear_probe", "ipet", "--learning_rates", "1e-3", "1e-2"),
        *more,
    ]


def arguments(workspace, **changes):
    values = {"output_dir": "out", "data_dir": str(workspace / "data"), "model_name_or_path": str(workspace / "ast")}
    values |= {"methods": ["ipet"], "folds": ["1", "2"], "seeds": [5, 6], "learning_rates": [0.1, 0.2]}
    return Arguments(**values | changes)


def record(method="ipet", fold="1", seed=0, accuracy=0.5, stage="test", **more):
    values = {"method": method, "stage": stage, "test_fold": fold, "learning_rate": 0.1, "seed": seed}
    values |= {"accuracy": accuracy, "loss": 1.0, "macro_f1": accuracy, "train_seconds": 2.0}
    return values | {"trainable_parameters": 30, "total_parameters": 90, "head_parameters": 10, **more}


def test_test_runs_wait_for_their_learning_rate(workspace):
    args = arguments(workspace)
    settings = make_settings(args)
    candidates = [Run("ipet", "select", fold, rate, 0) for fold in "12" for rate in (0.1, 0.2)]
    assert ready_runs(args, settings, {}) == candidates

    finished = {candidates[0]: record(accuracy=0.7, loss=1.0), candidates[1]: record(accuracy=0.7, loss=0.5)}
    tests = [Run("ipet", "test", "1", 0.2, seed) for seed in (5, 6)]  # as accurate, with a lower loss
    assert ready_runs(args, settings, finished) == [*tests, *candidates[2:]]
    finished[tests[0]] = record()
    assert ready_runs(args, settings, finished) == [tests[1], *candidates[2:]]


def test_the_test_fold_takes_no_part_in_training_or_selection(workspace, monkeypatch):
    seen = []

    def build_trainer(model, args, feature_extractor, train_set, judged_set, multi_label):
        seen.append((train_set, judged_set))
        raise InterruptedError

    monkeypatch.setattr(esc10, "build_trainer", build_trainer)
    monkeypatch.setattr(esc10, "FeatureDataset", lambda clips, features, labels: {clip.fold for clip in clips})
    args = arguments(workspace)
    for stage in ("select", "test"):
        for fold in "123":
            with pytest.raises(InterruptedError):
                run = Run("linear_probe", stage, fold, 0.1, 0)
                esc10.train(args.model_name_or_path, args.data_dir, make_settings(args), run)
    assert seen == [
        ({"3"}, {"2"}), ({"1"}, {"3"}), ({"2"}, {"1"}),
        ({"2", "3"}, {"1"}), ({"1", "3"}, {"2"}), ({"1", "2"}, {"3"}),
    ]  # fmt: skip


def test_an_interrupted_comparison_goes_on_where_it_was(workspace, tmp_path, monkeypatch, capsys):
    calls = []
    train = esc10.train

    def train_until(limit):
        def counted(*args):
            if len(calls) == limit:
                raise KeyboardInterrupt
            calls.append(args[-1])
            return train(*args)

        return counted

    monkeypatch.setattr(esc10, "train", train_until(5))
    with pytest.raises(KeyboardInterrupt):
        main(command(workspace, tmp_path))
    kept = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert list(by_run(kept)) == calls

    monkeypatch.setattr(esc10, "train", train_until(100))
    results = main(command(workspace, tmp_path))
    assert len(calls) == len(set(calls)) == len(results["runs"]) == 2 * 2 * (2 + 2)
    assert results["runs"][:5] == kept
    assert all(0 <= run["accuracy"] <= 1 for run in results["runs"])
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert set(results["summary"]) == {"linear_probe", "ipet"}

    monkeypatch.setattr(esc10, "train", train_until(0))
    capsys.readouterr()
    assert main(["--output_dir", str(tmp_path), "--table"]) == results
    printed = capsys.readouterr().out
    assert "| ipet | " in printed
    assert "ESC-10, ast, 1 epochs" in printed
    with pytest.raises(UsageError, match="epochs = 1, now it is 2"):
        main(command(workspace, tmp_path, "--epochs", "2"))


def test_methods_and_learning_rates_can_be_added_but_options_not_changed(workspace, tmp_path):
    settings = make_settings(arguments(workspace))
    stored = json.loads(json.dumps(settings._asdict()))
    del stored["options"]["lora"], stored["learning_rates"]["lora"]
    assert join_settings(stored, settings, tmp_path) == settings._asdict()
    stored["learning_rates"]["ipet"] = [0.3]
    assert join_settings(stored, settings, tmp_path) == settings._asdict()
    stored["options"]["ipet"] = {"bottleneck_dim": 8}
    with pytest.raises(UsageError, match="holds runs with options = .*'bottleneck_dim': 8.* now it is"):
        join_settings(stored, settings, tmp_path)


def test_a_run_is_the_same_again(workspace):
    args = arguments(workspace, epochs=1)
    run = Run("ipet", "test", "1", 0.01, 3)
    first, second = (esc10.train(args.model_name_or_path, args.data_dir, make_settings(args), run) for _ in range(2))
    del first["train_seconds"], second["train_seconds"]
    assert first == second
    assert first["train_clips"] == 18


def test_summary_of_known_runs():
    accuracies = {("1", 0): 0.5, ("1", 1): 0.7, ("2", 0): 0.9, ("2", 1): 0.9}
    records = [record(fold=fold, seed=seed, accuracy=value) for (fold, seed), value in accuracies.items()]
    records += [record(fold=fold, stage="select", accuracy=0.0) for fold in "12"]
    records += [record(seed=seed, learning_rate=0.3, accuracy=0.1) for seed in (0, 1)]  # not the chosen rate
    records += [record("full", stage="select"), record("full", accuracy=1.0)]
    records += [record("lora", accuracy=1.0)]  # nothing chosen yet
    summary = summarize(by_run(records), dict.fromkeys(("ipet", "lora", "full"), [0.1]))
    assert list(summary) == ["ipet", "full"]
    ipet = summary["ipet"]
    assert ipet["test_runs"] == 4
    assert ipet["accuracy"] == pytest.approx(0.75)
    assert ipet["accuracy_by_seed"] == pytest.approx({"0": 0.7, "1": 0.8})
    assert ipet["accuracy_by_fold"] == pytest.approx({"1": 0.6, "2": 0.9})
    assert ipet["accuracy_std_over_seeds"] == pytest.approx(0.1 / 2**0.5)
    assert ipet["accuracy_std_over_folds"] == pytest.approx(0.3 / 2**0.5)
    assert ipet["trainable_without_head"] == 20
    assert ipet["train_seconds_of_all_runs"] == 16
    assert summary["full"]["accuracy_std_over_seeds"] is None
    header, rows = table_rows(summary)
    assert [row[:4] for row in rows] == [["ipet", "75.0", "7.1", "21.2"], ["full", "100.0", "-", "-"]]
    assert all(len(row) == len(header) for row in rows)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--folds", "7"), "--folds 7: the folds of .* are 1, 2, 3"),
        (("--jobs", "0"), "--jobs 0"),
        (("--table",), "there is no .*results.json"),
    ],
)
def test_unusable_arguments_are_named(workspace, tmp_path, more, expected):
    with pytest.raises(UsageError, match=expected):
        main(command(workspace, tmp_path, *more))


def test_data_is_needed(workspace, tmp_path):
    with pytest.raises(UsageError, match="--data_dir is missing"):
        main(["--output_dir", str(tmp_path)])
    with pytest.raises(DataError, match="not a folder"):
        main(["--output_dir", str(tmp_path), "--data_dir", str(tmp_path / "absent")])


def test_methods_compared_have_comparable_sizes():
    labels = sorted(set("abcdefghij"))
    sizes = {}
    for method, options in esc10.OPTIONS.items():
        model = apply_method(load_model(str(esc10.BUNDLED_BACKBONE), labels), method, **options)
        sizes[method] = parameter_counts(model)["trainable_parameters"]
    assert 0.01 <= sizes["ipet"] / sizes["full"] <= 0.05
    assert sizes["lora"] == pytest.approx(sizes["ipet"], rel=0.1)
    assert sizes["linear_probe"] < sizes["embedding_prompt"] < sizes["parallel_mlp"] < sizes["ipet"]

import json
import sys

import esc10
import esc10_plot
import pytest
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
)
from esc10_rows import LEARNING_RATES, OPTIONS, ROWS, TITLES, expand, method_of, row_of, title_of
from esc10_table import table_rows
from sounds import save_ast, write_tones

from peft_audio.trainer import METHODS


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


def sized_record(method, size, accuracy, **more):
    """A record of a method with `size` parameters beside a backbone of 1,000 and a head of 10."""
    counts = {"trainable_parameters": size + 10, "total_parameters": 1000 + size + 2 * 10, "head_parameters": 10}
    if method == "full":
        counts["total_parameters"] = 1000 + 10  # nothing lies beside the model
    return record(method, accuracy=accuracy, **counts, **more)


def sized_summary():
    """The summary of a comparison with two curves of several points, a single point, and both levels."""
    sizes = {
        ("ipet", 20): 0.7,
        ("ipet@8-32", 90): 0.8,
        ("ipet@1-1", 2): 0.75,
        ("lora@1-2", 3): 0.6,
        ("lora", 30): 0.9,
        ("joint", 80): 0.65,
        ("linear_probe", 0): 0.5,
        ("full", 1000): 0.85,
    }
    records = [sized_record(name, size, accuracy) for (name, size), accuracy in sizes.items()]
    records += [record(row, stage="select") for row in ("ipet", "lora", "joint", "linear_probe", "full")]
    return summarize(by_run(records), dict.fromkeys(ROWS, [0.1]))


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


def test_sizes_take_the_learning_rate_of_their_row_fold_by_fold(workspace):
    args = arguments(workspace, methods=["ipet@1-1", "ipet@8-32"], seeds=[5])
    settings = make_settings(args)
    candidates = [Run("ipet", "select", fold, rate, 0) for fold in "12" for rate in (0.1, 0.2)]
    assert ready_runs(args, settings, {}) == candidates

    finished = {run: record() for run in candidates}
    finished[candidates[1]] = record(accuracy=0.8)
    finished[candidates[2]] = record(accuracy=0.7)
    # What a size has shown itself decides nothing.
    finished |= {run._replace(method="ipet@1-1"): record(accuracy=1.0) for run in (candidates[0], candidates[3])}
    rates = {"1": 0.2, "2": 0.1}
    tests = {name: [Run(name, "test", fold, rates[fold], 5) for fold in "12"] for name in args.methods}
    assert ready_runs(args, settings, finished) == tests["ipet@1-1"] + tests["ipet@8-32"]

    records = [{**record(), **run._asdict()} for run in tests["ipet@1-1"]]
    records.append(record("ipet@1-1", fold="2", learning_rate=0.2, accuracy=1.0))  # not the row's rate there
    records += [{**values, **run._asdict()} for run, values in finished.items()]
    summary = summarize(by_run(records), settings.learning_rates)
    assert list(summary) == ["ipet@1-1"]
    assert summary["ipet@1-1"]["learning_rate_by_fold"] == rates
    assert summary["ipet@1-1"]["test_runs"] == 2


def test_a_comparison_of_sizes_selects_for_the_rows_alone(workspace, tmp_path, monkeypatch):
    calls = []

    def train(model_name, data_dir, settings, run):
        calls.append(run)
        return {"judged_fold": "3", **{name: value for name, value in record().items() if name not in Run._fields}}

    monkeypatch.setattr(esc10, "train", train)
    args = command(workspace, tmp_path)
    args[args.index("--methods") + 1 : args.index("--learning_rates")] = ["ipet@1-1", "lora@1-2"]
    results = main(args)
    assert {(run.method, run.stage) for run in calls} == {
        *(("ipet", "select"), ("lora", "select"), ("ipet@1-1", "test"), ("lora@1-2", "test")),
    }
    assert set(results["summary"]) == {"ipet@1-1", "lora@1-2"}
    assert len(calls) == 2 * 2 * 2 + 2 * 2 * 2


def test_the_test_fold_takes_no_part_in_training_or_selection(workspace, monkeypatch):
    seen = []

    def build_trainer(model, args, feature_extractor, train_set, judged_set):
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
    assert "| IPET | " in printed
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
    assert ipet["share_of_backbone"] == 20 / 50  # 90 without what trains, and without the head that does not
    assert ipet["train_seconds_of_all_runs"] == 16
    assert summary["full"]["accuracy_std_over_seeds"] is None
    header, rows = table_rows(summary)
    assert [row[:4] for row in rows] == [["IPET", "75.0", "7.1", "21.2"], ["full fine-tuning", "100.0", "-", "-"]]
    assert all(len(row) == len(header) for row in rows)
    assert rows[0][header.index("share of backbone %")] == "40.00"


def test_the_table_has_a_row_a_method_and_the_sizes_on_request():
    summary = sized_summary()
    header, rows = table_rows(summary)
    titles = ["linear probe", "IPET", "LoRA", "full fine-tuning", "Joint"]
    assert [row[0] for row in rows] == titles
    assert [row[header.index("share of backbone %")] for row in rows] == ["0.00", "2.00", "3.00", "100.00", "8.00"]
    assert [row[0] for row in table_rows(summary, sizes=True)[1]] == [
        *("linear probe", "IPET @ 1-1", "IPET", "IPET @ 8-32", "LoRA @ 1-2", "LoRA", "full fine-tuning", "Joint"),
    ]


# Rows and sizes


def test_names_say_their_row_and_their_method():
    assert [(name, row_of(name), method_of(name)) for name in ("ipet", "aat_ms@12", "time_freq_conv:T+F@13")] == [
        ("ipet", "ipet", "ipet"),
        ("aat_ms@12", "aat_ms", "aat_ms"),
        ("time_freq_conv:T+F@13", "time_freq_conv:T+F", "time_freq_conv"),
    ]
    assert set(map(row_of, OPTIONS)) == set(ROWS) == set(TITLES) == set(LEARNING_RATES)
    assert set(map(method_of, OPTIONS)) <= set(METHODS)
    assert len(set(TITLES.values())) == len(TITLES)
    assert (title_of("lora@1-2"), title_of("gone")) == ("LoRA @ 1-2", "gone")


def test_groups_of_names_stand_for_all_their_names(monkeypatch, tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,label\n")
    data_dir = str(tmp_path)
    assert Arguments(output_dir="out", data_dir=data_dir).methods == list(ROWS)
    assert expand(["rows", "sizes"]) == list(OPTIONS)
    assert all("@" in name for name in expand(["sizes"]))
    assert expand(["lora", "ipet@1-1", "lora"]) == ["lora", "ipet@1-1"]
    seen = []
    monkeypatch.setattr(esc10, "run_missing", lambda args, results, path: seen.append(args.methods) or sys.exit())
    with pytest.raises(SystemExit):
        main(["--output_dir", "out", "--data_dir", data_dir, "--methods", "sizes", "lora"])
    assert seen == [[*expand(["sizes"]), "lora"]]


def test_each_method_is_a_curve_from_small_to_large():
    axes = esc10_plot.draw(sized_summary()).axes[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    points = {
        "IPET": [(0.2, 75), (2, 70), (9, 80)],
        "LoRA": [(0.3, 60), (3, 90)],
        "Joint": [(8, 65)],
        "full fine-tuning": [(0, 85), (1, 85)],  # horizontal lines go from 0 to 1 of the axes
        "linear probe": [(0, 50), (1, 50)],
    }
    assert set(lines) == set(points)
    for title, expected in points.items():
        assert [x for point in lines[title] for x in point] == pytest.approx([x for p in expected for x in p]), title
    assert axes.get_xscale() == "log"
    low, high = axes.get_xlim()
    assert low < 0.1 < 10 < high
    legend = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    assert sorted(legend) == sorted(points)


def test_a_size_is_drawn_once_it_has_all_folds_of_its_row():
    records = [sized_record("ipet", 20, 0.7, fold=fold) for fold in "12"]
    records += [sized_record("ipet@1-1", 2, 0.9, fold="1")]
    records += [record("ipet", stage="select", fold=fold) for fold in "12"]

    def points():
        return esc10_plot.curves(summarize(by_run(records), dict.fromkeys(ROWS, [0.1])))["ipet"]

    assert points() == [pytest.approx((2, 70))]
    records.append(sized_record("ipet@1-1", 2, 0.7, fold="2"))
    assert points() == [pytest.approx((0.2, 80)), pytest.approx((2, 70))]


def test_curves_can_be_told_apart():
    styles = esc10_plot.STYLES
    assert set(styles) | set(esc10_plot.LEVELS) == set(ROWS)
    assert len(set(styles.values())) == len(styles)
    # Without colors, the marker tells the members of a family apart.
    assert len({(color, marker) for color, marker, _ in styles.values()}) == len(styles)


def test_the_picture_is_written_whole(tmp_path, monkeypatch):
    path = tmp_path / "pictures" / "sizes.png"
    esc10_plot.plot_sizes({}, path)
    esc10_plot.plot_sizes(sized_summary(), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(path.parent.iterdir()) == [path]
    before = path.read_bytes()
    monkeypatch.setattr(esc10_plot.Figure, "savefig", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        esc10_plot.plot_sizes(sized_summary(), path)
    assert path.read_bytes() == before


def test_table_and_picture_come_from_a_results_file(tmp_path, capsys):
    records = [sized_record(name, 20, 0.7) for name in ("ipet", "ipet@1-1")] + [record(stage="select")]
    settings = {"model": "ast", "epochs": 3, "learning_rates": dict.fromkeys(ROWS, [0.1])}
    (tmp_path / "results.json").write_text(json.dumps({"settings": settings, "runs": records}))
    call = ["--output_dir", str(tmp_path), "--table"]
    main([*call, "--plot", str(tmp_path / "sizes.png")])
    assert (tmp_path / "sizes.png").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "| IPET | 70.0 |" in printed
    assert "@" not in printed
    main([*call, "--sizes"])
    assert "| IPET @ 1-1 | 70.0 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--folds", "7"), "--folds 7: the folds of .* are 1, 2, 3"),
        (("--jobs", "0"), "jobs must be a whole number from 1 to 1,024, got 0"),
        (("--table",), "there is no .*results.json"),
        (("--plot", "sizes"), "--plot sizes: the file name must end in one of .*\\.png"),
    ],
)
def test_unusable_arguments_are_named(workspace, tmp_path, more, expected):
    with pytest.raises(UsageError, match=expected):
        main(command(workspace, tmp_path, *more))


def test_data_is_needed(workspace, tmp_path):
    with pytest.raises(UsageError, match="--data_dir is missing"):
        main(["--output_dir", str(tmp_path)])
    with pytest.raises(UsageError, match="data_dir must be a folder with|data_dir must be a folder, got"):
        main(["--output_dir", str(tmp_path), "--data_dir", str(tmp_path / "absent")])

"""Pictures of results: the data that they show. That they are legible can only be seen."""

import dataclasses
import json
import math
from collections import Counter

import numpy as np
import pictures
import pytest
import run_recipe
from drawn import figure_of, image_of, legend_of, lines_of, ticks_of
from experiments.recipe import load_recipe
from layouts import LAYOUTS
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from plots.confusion import plot_confusion
from plots.epochs import plot_epochs
from plots.files import read_columns, read_entry
from plots.tradeoff import Point, plot_tradeoff


# Accuracy over parameters

POINTS = [
    Point("ipet", 400_000, 0.9, 0.02),
    Point("full", 86_000_000, 0.95, 0.01),
    Point("ipet", 100_000, 0.8, 0.03),
    Point("ipet", 1_600_000, 0.92),
    Point("linear_probe", 40_000, 0.7),
]


def bars_of(axes):
    """Both ends of every error bar."""
    return [
        bar.tolist() for lines in axes.collections if isinstance(lines, LineCollection) for bar in lines.get_segments()
    ]


def test_each_method_is_a_curve_over_its_sizes_and_full_fine_tuning_a_dotted_line():
    figure = plot_tradeoff(POINTS)
    (axes,) = figure.axes
    lines = lines_of(axes)
    assert lines == {
        "linear probe": [[40_000, pytest.approx(70)]],
        "IPET": [[100_000, pytest.approx(80)], [400_000, pytest.approx(90)], [1_600_000, pytest.approx(92)]],
        "full fine-tuning": [[0, pytest.approx(95)], [1, pytest.approx(95)]],  # from 0 to 1 of the axes
    }
    assert sorted(legend_of(figure.legends[0])) == sorted(lines)
    assert [line.get_linestyle() for line in axes.get_lines() if line.get_label() == "full fine-tuning"] == [":"]
    assert (axes.get_xscale(), axes.get_xlabel(), axes.get_ylabel()) == ("log", "trainable parameters", "accuracy, %")


def test_bars_are_the_standard_deviations_of_the_points_that_have_one():
    bars = bars_of(plot_tradeoff(POINTS).axes[0])
    assert np.array(bars) == pytest.approx(np.array([[[1e5, 77], [1e5, 83]], [[4e5, 88], [4e5, 92]]]))
    for nothing in (None, math.nan):
        assert bars_of(plot_tradeoff([point._replace(std=nothing) for point in POINTS]).axes[0]) == []


@pytest.mark.parametrize(
    ("metric", "title", "height"),
    [
        ("equal_error_rate", "equal error rate, %", 25),
        ("map", "mean average precision", 0.25),
        ("min_dcf", "minDCF", 0.25),
    ],
)
def test_other_metrics_have_their_own_axis(metric, title, height):
    for axes, name in (
        (plot_tradeoff([Point("lora", 1000, 0.25)], metric).axes[0], "LoRA"),
        (plot_epochs({"run": [0.25]}, metric).axes[0], "run"),
    ):
        assert axes.get_ylabel().startswith(title)
        assert lines_of(axes)[name][0][1] == pytest.approx(height)


def test_curves_of_unknown_names_can_be_told_apart():
    names = ["ipet", "lora", *(f"variant {index}" for index in range(20))]
    axes = plot_tradeoff([Point(name, 1000, 0.5) for name in names]).axes[0]
    looks = Counter((line.get_color(), line.get_marker()) for line in axes.get_lines())
    assert max(looks.values()) == 1 and len(looks) == 22


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], "`points` is empty"),
        ([Point("ipet", 0, 0.5)], "`trainable_parameters` must be above 0"),
        ([Point("ipet", 10, 95.0)], r"`mean` must lie in \[0, 1\]"),
        ([Point("ipet", 10, math.nan)], r"`mean` must lie in \[0, 1\]"),
        ([Point("ipet", 10, 0.5, -0.1)], "`std` must be 0 or more"),
        ([Point("ipet", 1000, 0.5), Point("ipet", 1000, 0.6)], "several for 'ipet' with 1,000 parameters"),
        ([Point("full", 10, 0.5), Point("full", 20, 0.6)], "several for 'full': leave"),
    ],
)
def test_unusable_points_are_refused(points, expected):
    with pytest.raises(ValueError, match=expected):
        plot_tradeoff(points)


def test_unknown_metrics_are_refused():
    for draw in (lambda: plot_tradeoff(POINTS, "f1"), lambda: plot_epochs({"run": [0.5]}, "f1")):
        with pytest.raises(ValueError, match="`metric` must be one of accuracy, map, .*, got 'f1'"):
            draw()


# Recipes' folders

ACCURACIES = {"ipet/ast-esc50": 0.9, "ipet/ast-esc50-adapter": 0.8, "ipet/ast-esc50-full": 0.7}
SIZES = {"ipet/ast-esc50": 676_274, "ipet/ast-esc50-adapter": 600_000, "ipet/ast-esc50-full": 86_000_000}


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """The folder of recipes run with two folds and two epochs, as `run_recipe.py` leaves it; without the trainings."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "data").mkdir()
    LAYOUTS["esc50"](folder / "data")
    for name, accuracy in ACCURACIES.items():
        settings = {"recipe": dataclasses.asdict(load_recipe(name, {"epochs": 2})), "model": None}
        for fold, offset in ((1, -0.01), (2, 0.01)):
            run = folder / "out" / name / f"fold-{fold}" / "seed-0"
            run.mkdir(parents=True)
            epochs = {"test": {"accuracy": [accuracy + offset + 0.05, accuracy + offset], "map": [0.5, 0.25]}}
            counts = {"trainable_parameters": SIZES[name], "total_parameters": 87_000_000, "adapter_bytes": 1}
            (run / "result.json").write_text(json.dumps({"settings": settings, "epochs": epochs, **counts}))
    options = ["--data_dir", str(folder / "data"), "--output_dir", str(folder / "out"), "--folds", "1", "2"]
    run_recipe.main([*ACCURACIES, *options, "--set", "epochs=2"])
    return folder / "out"


def test_the_results_of_recipes_become_points(recipes):
    folders = [recipes / name for name in ACCURACIES]
    axes = figure_of("tradeoff", *folders).axes[0]
    assert lines_of(axes) == {
        "IPET": [[676_274, pytest.approx(90)]],
        "parallel MLP": [[600_000, pytest.approx(80)]],
        "full fine-tuning": [[0, pytest.approx(70)], [1, pytest.approx(70)]],
    }
    std = 100 * np.std([-0.01, 0.01], ddof=1)
    ends = sorted(tuple(end[1] for end in bar) for bar in bars_of(axes))
    assert np.array(ends) == pytest.approx(np.array([[80 - std, 80 + std], [90 - std, 90 + std]]))
    assert axes.get_title().startswith("last epoch")

    best = figure_of("tradeoff", *folders, "--rule", "best epoch on the test clips").axes[0]
    assert lines_of(best)["IPET"] == [[676_274, pytest.approx(95)]]


def test_a_recipe_with_one_run_has_no_bar(tmp_path):
    values = {"map": {"last epoch": {"mean": 0.25, "std_over_folds": None, "std_over_seeds": None}}}
    (tmp_path / "summary.json").write_text(json.dumps({"measured": values, "trainable_parameters": 1000}))
    axes = figure_of("tradeoff", f"lora={tmp_path}", "--metric", "map").axes[0]
    assert lines_of(axes) == {"LoRA": [[1000, 0.25]]}
    assert bars_of(axes) == []


def test_a_recipe_can_be_put_on_a_curve_of_another_name(recipes):
    first, second, _ = (recipes / name for name in ACCURACIES)
    axes = figure_of("tradeoff", f"k = 4={first}", f"k = 4={second}").axes[0]
    assert lines_of(axes) == {"k = 4": [[600_000, pytest.approx(80)], [676_274, pytest.approx(90)]]}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (
            ("--rule", "averaged weights"),
            "measured > accuracy must have 'averaged weights', it has 'best epoch on the test clips', 'last epoch'",
        ),
        (("--metric", "min_dcf"), "measured must have 'min_dcf', it has 'accuracy'"),
    ],
)
def test_what_a_summary_lacks_is_named(recipes, more, expected):
    with pytest.raises(ValueError, match=f"summary.json: {expected}"):
        figure_of("tradeoff", recipes / "ipet/ast-esc50", *more)


def test_runs_are_drawn_over_one_another_epoch_by_epoch(recipes):
    figure = figure_of(
        "epochs", recipes / "ipet/ast-esc50", recipes / "ipet/ast-esc50-full", recipes / "ipet/ast-esc50"
    )
    lines = lines_of(figure.axes[0])
    assert lines == {
        f"{name}, fold-{fold}, seed-0": [[1, pytest.approx(value + 5)], [2, pytest.approx(value)]]
        for name, fold, value in (
            ("ipet/ast-esc50", 1, 89),
            ("ipet/ast-esc50", 2, 91),
            ("ipet/ast-esc50-full", 1, 69),
            ("ipet/ast-esc50-full", 2, 71),
        )
    }
    assert legend_of(figure.legends[0]) == list(lines)


def test_the_same_run_in_two_folders_is_named_by_its_folder(recipes, tmp_path):
    run = "ipet/ast-esc50/fold-1/seed-0/result.json"
    (tmp_path / run).parent.mkdir(parents=True)
    (tmp_path / run).write_text((recipes / run).read_text())
    lines = lines_of(figure_of("epochs", recipes / "ipet/ast-esc50/fold-1", tmp_path).axes[0])
    assert list(lines) == [str((folder / run).resolve().parent) for folder in (recipes, tmp_path)]


def test_many_runs_can_be_told_apart():
    axes = plot_epochs({f"run {index}": [0.5, 0.6] for index in range(40)}).axes[0]
    assert len({(to_hex(line.get_color()), line.get_linestyle()) for line in axes.get_lines()}) == 40


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ({}, "`runs` is empty"),
        ({"a": []}, r"Run 'a' must have a value for each epoch, got shape \(0,\)"),
        ({"a": [0.5], "b": [0.5, 1.5]}, r"Run 'b', epoch 2: accuracy must lie in \[0, 1\], got 1.5"),
        ({"a": [math.nan]}, "Run 'a', epoch 1: .* got nan"),
    ],
)
def test_unusable_runs_are_refused(runs, expected):
    with pytest.raises(ValueError, match=expected):
        plot_epochs(runs)


def test_a_folder_without_runs_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path}: there is no result.json in it"):
        figure_of("epochs", tmp_path)


# Confusion matrix


def test_the_rows_of_a_confusion_matrix_are_shares_of_the_clips_of_a_class():
    targets = ["cat", "cat", "cat", "dog", "dog", "owl"]
    predictions = ["cat", "dog", "dog", "dog", "dog", "cat"]
    axes = plot_confusion(targets, predictions, ["owl", "dog", "cat", "hen"]).axes[0]
    expected = [[0, 0, 1, 0], [0, 1, 0, 0], [0, 2 / 3, 1 / 3, 0], [0, 0, 0, 0]]
    assert image_of(axes) == pytest.approx(np.array(expected))
    assert axes.images[0].get_clim() == (0, 1)
    assert ticks_of(axes.xaxis) == ticks_of(axes.yaxis) == ["owl", "dog", "cat", "hen"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "class")
    assert [text.get_text() for text in axes.texts] == [f"{share:.2f}" for row in expected for share in row]
    axes = plot_confusion(targets, predictions).axes[0]
    assert ticks_of(axes.xaxis) == ["cat", "dog", "owl"]


@pytest.mark.parametrize("count", [3, 12, 50])
def test_the_names_of_classes_do_not_run_into_one_another(count):
    labels = [f"crackling fire {index:02d}" for index in range(count)]
    figure = plot_confusion(labels, labels)
    FigureCanvasAgg(figure).draw()
    axes = figure.axes[0]
    assert ticks_of(axes.xaxis) == ticks_of(axes.yaxis) == labels
    for axis, low, high in ((axes.xaxis, "x0", "x1"), (axes.yaxis, "y0", "y1")):
        boxes = sorted(
            (label.get_window_extent() for label in axis.get_ticklabels()), key=lambda box: getattr(box, low)
        )
        assert len(boxes) == count
        assert all(getattr(first, high) <= getattr(second, low) for first, second in zip(boxes, boxes[1:]))
        assert min(getattr(box, low) for box in boxes) >= 0
    assert bool(axes.texts) == (count <= 12)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (([], []), "got 0 and 0"),
        ((["a"], ["a", "b"]), "a class for each clip, got 1 and 2"),
        ((["a", "b"], ["a", "c"], ["a", "b"]), "it lacks 'c'"),
        ((["a"], ["b"], ["a", "b", "a"]), "each class once, got 'a' several times"),
    ],
)
def test_unusable_predictions_are_refused(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        plot_confusion(*arguments)


def test_predictions_are_read_from_a_file(tmp_path):
    path = tmp_path / "predictions.csv"
    path.write_text('file,label,prediction\n1.wav,"rain, heavy",dog\n2.wav,dog,dog\n')
    axes = figure_of("confusion", path).axes[0]
    assert ticks_of(axes.yaxis) == ["dog", "rain, heavy"]
    assert image_of(axes).tolist() == [[1, 0], [1, 0]]


# Files


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "no such file. Give a CSV file with the columns score, label"),
        ("score,speaker\n1,2\n", "column 'label' is missing, the columns are 'score', 'speaker'"),
        ("score,label\n0.5,1\nhigh,1\n", "line 3: column 'score' must be a number, it is 'high'"),
        ("score,label\n0.5,\n", "line 2: column 'label' must be a number, it is ''"),
    ],
)
def test_unusable_columns_are_named(tmp_path, text, expected):
    path = tmp_path / "trials.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=f"trials.csv:? {expected}"):
        read_columns(path, {"score": float, "label": float})


def test_an_empty_class_is_named(tmp_path):
    path = tmp_path / "predictions.csv"
    path.write_text("label,prediction\na,\n")
    with pytest.raises(ValueError, match="line 2: column 'prediction' must be filled in"):
        figure_of("confusion", path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "cannot be read .*No such file"),
        ("{", "no JSON"),
        ("[1]", "the file must have 'a', it has no names"),
        ('{"b": 1}', "the file must have 'a', it has 'b'"),
        ('{"a": {"c": 1, "d": 2}}', "a must have 'b', it has 'c', 'd'"),
        ('{"a": 1}', "a must have 'b', it has no names"),
    ],
)
def test_unusable_entries_are_named(tmp_path, text, expected):
    path = tmp_path / "summary.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=f"summary.json: {expected}"):
        read_entry(path, "a", "b")


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_command_writes_the_picture_whole(tmp_path, ending):
    path = tmp_path / "predictions.csv"
    path.write_text("label,prediction\na,a\nb,a\n")
    output = tmp_path / "new" / f"picture.{ending}"
    assert pictures.main(["confusion", str(path), "--output", str(output)]) == output
    start = output.read_bytes()[:100]
    assert start.startswith(b"\x89PNG") if ending == "png" else b"<?xml" in start
    assert list(output.parent.iterdir()) == [output]


def test_an_unknown_format_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match=r"--output .*picture.bmp2: the file name must end in one of .*\.png"):
        pictures.main(["confusion", str(tmp_path / "absent.csv"), "--output", str(tmp_path / "picture.bmp2")])
    assert list(tmp_path.iterdir()) == []

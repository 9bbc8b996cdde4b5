"""The data that pictures show; that they are legible can only be seen."""

import dataclasses
import json
import math
from collections import Counter
from statistics import NormalDist

import numpy as np
import pictures
import pytest
import run_recipe
import soundfile
import torch
from adapters import save_adapter
from audio_data import load_waveform
from experiments.recipe import load_recipe
from layouts import LAYOUTS
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from peft import get_peft_model
from plots.attention import attention_map, before_and_after, patches_at, plot_attention, upscaled
from plots.confusion import plot_confusion
from plots.epochs import plot_epochs
from plots.files import read_columns, read_entry
from plots.tradeoff import Point, plot_tradeoff
from plots.verification import plot_verification
from sounds import save_ast, tone
from tiny import METHODS, make_ast, make_inputs, make_wav2vec2, randomize
from transformers import ASTConfig, ASTFeatureExtractor

from peft_audio import AutoPeftModelForAudioClassification


def lines_of(axes):
    """By name in the legend, the points of each line."""
    return {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}


def legend_of(legend):
    return [text.get_text() for text in legend.get_texts()]


def ticks_of(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def image_of(axes):
    (image,) = axes.images
    return np.asarray(image.get_array())


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


def figure_of(*arguments):
    args = pictures.parse_arguments([*map(str, arguments), "--output", "picture.png"])
    return args.draw(args)


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
            ("--rule", "best"),
            "measured > accuracy must have 'best', it has 'best epoch on the test clips', 'last epoch'",
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


# Attention

FRAMES = (20, 30)  # of the tiny AST: its patches over time have their middles at 8, 18, 28 and 38
STEP = 2


def eager_ast(**options):
    return make_ast(attn_implementation="eager", **options)


def spectrogram(seed=1):
    return make_inputs("ast", batch_size=1, seed=seed)["input_values"][0]


def adapted_ast(method, **options):
    return randomize(get_peft_model(eager_ast(**options), METHODS[method]())).eval()


def queries_and_keys(model, inputs, layer):
    """Of every token that takes part in the attention of the layer, `(tokens, heads, d / heads)` each."""
    attention = [module for module in model.modules() if hasattr(module, "q_proj")][layer]
    captured = {}
    hooks = [
        getattr(attention, name).register_forward_hook(lambda *call, name=name: captured.update({name: call[2][0]}))
        for name in ("q_proj", "k_proj")
    ]
    with torch.no_grad():
        model(input_values=inputs[None])
    for hook in hooks:
        hook.remove()
    heads = attention.num_attention_heads
    return (captured[name].reshape(-1, heads, captured[name].shape[-1] // heads) for name in ("q_proj", "k_proj"))


def map_by_hand(model, inputs, layer=-1, step=STEP, heads=range(4), rows=range(3)):
    """Softmax of queries and keys, as sums over single numbers; the tiny AST has 3 x 4 patches, its last tokens."""
    queries, keys = queries_and_keys(model, inputs, layer)
    first = len(keys) - 12
    total = np.zeros((3, 4))
    for head in heads:
        for row in rows:
            query = queries[first + 4 * row + step, head]
            weights = torch.softmax(keys[:, head] @ query / math.sqrt(len(query)), dim=0)
            for frequency in range(3):
                for time in range(4):
                    total[frequency, time] += float(weights[first + 4 * frequency + time])
    return total / total.sum()


@pytest.mark.parametrize("method", ["ipet", "embedding_prompt", "time_freq_conv"])
@pytest.mark.parametrize(
    ("options", "by_hand"),
    [
        ({}, {}),
        ({"layer": 0, "head": 1}, {"layer": 0, "heads": [1]}),
        ({"layer": 1, "frequency_patch": 2}, {"layer": 1, "rows": [2]}),
        ({"frames": (0, 10)}, {"step": 0}),
    ],
)
def test_an_attention_map_is_the_softmax_of_queries_and_keys(method, options, by_hand):
    model, inputs = adapted_ast(method), spectrogram()
    options = {"frames": FRAMES} | options
    attention = attention_map(model, inputs, **options)
    assert attention.shape == (3, 4)
    assert attention.sum() == pytest.approx(1)
    assert attention == pytest.approx(map_by_hand(model, inputs, **by_hand), abs=1e-6)
    with model.disable_adapter():
        assert attention_map(model, inputs, **options) == pytest.approx(
            map_by_hand(model, inputs, **by_hand), abs=1e-6
        )


def test_prompts_take_part_but_are_not_shown():
    model, inputs = adapted_ast("embedding_prompt"), spectrogram()
    _, keys = queries_and_keys(model, inputs, -1)
    assert len(keys) == 3 + 2 + 12  # prompts, special tokens, patches
    with model.disable_adapter():
        _, keys = queries_and_keys(model, inputs, -1)
    assert len(keys) == 2 + 12


def test_several_time_steps_give_their_mean():
    model, inputs = eager_ast(), spectrogram()
    queries, keys = queries_and_keys(model, inputs, -1)
    weights = torch.softmax(torch.einsum("qhd,khd->hqk", queries, keys) / math.sqrt(8), dim=-1)[:, 2:, 2:]
    rows = [4 * row + step for row in range(3) for step in (1, 2)]
    expected = weights[:, rows].mean(dim=(0, 1)).reshape(3, 4).double()
    assert attention_map(model, inputs, frames=(18, 29)) == pytest.approx(
        (expected / expected.sum()).numpy(), abs=1e-6
    )


def test_a_map_is_bright_where_the_attended_sound_is():
    model = eager_ast(num_hidden_layers=1, num_mel_bins=48, max_length=64, time_stride=16, frequency_stride=16)
    ast = model.audio_spectrogram_transformer
    with torch.no_grad():
        # Attention asks for the tokens whose first number is high, and that is a patch's energy.
        for parameter in (ast.embeddings.position_embeddings, *ast.embeddings.patch_embeddings.parameters()):
            parameter.zero_()
        ast.embeddings.patch_embeddings.projection.weight[0] = 1.0
        attention = ast.layers[0].attention
        for parameter in (*attention.q_proj.parameters(), *attention.k_proj.parameters()):
            parameter.zero_()
        attention.q_proj.bias.fill_(1.0)
        attention.k_proj.weight[:, 0] = 1.0
    inputs = torch.zeros(64, 48)
    inputs[48:64, 16:32] = 1.0  # the last quarter of the time, the middle third of the frequencies
    for frames in ((0, 16), (48, 64)):
        attention = attention_map(model, inputs, frames=frames)
        assert np.unravel_index(attention.argmax(), attention.shape) == (1, 3)
    _, before, after = plot_attention(inputs, attention, attention, model.config, (48, 64)).axes[:3]
    shown = image_of(before)
    bright = np.argwhere(shown == shown.max())  # (mel bin, frame)
    assert (bright.min(axis=0).tolist(), bright.max(axis=0).tolist()) == ([16, 48], [31, 63])
    assert (image_of(after) == shown).all()


def test_before_is_the_base_model_and_after_differs_through_the_adapter_alone():
    inputs = spectrogram()
    base = attention_map(eager_ast(), inputs, frames=FRAMES)
    fresh = get_peft_model(eager_ast(), METHODS["time_freq_conv"]()).eval()  # starts as the identity
    before, after = before_and_after(fresh, inputs, frames=FRAMES)
    assert (before == base).all() and (after == base).all()
    for method in ("time_freq_conv", "ipet"):
        model = adapted_ast(method)
        logits = model(input_values=inputs[None]).logits
        before, after = before_and_after(model, inputs, frames=FRAMES)
        assert (before == base).all()
        assert np.abs(after - base).max() > 1e-3
        assert after == pytest.approx(map_by_hand(model, inputs), abs=1e-6)
        assert torch.equal(model(input_values=inputs[None]).logits, logits)  # the adapter is on again


@pytest.mark.parametrize(
    ("stride", "frames", "expected"), [(16, (320, 336), [20]), (10, (320, 336), [32]), (16, (0, 33), [0, 1])]
)
def test_a_time_is_that_of_the_patches_with_their_middle_in_it(stride, frames, expected):
    assert patches_at(frames, ASTConfig(time_stride=stride)).tolist() == expected


def test_maps_are_upscaled_patch_by_patch():
    config = ASTConfig(max_length=64, num_mel_bins=48, time_stride=16, frequency_stride=16)
    attention = np.arange(12.0).reshape(3, 4)
    assert (upscaled(attention, config) == np.kron(attention, np.ones((16, 16)))).all()


def test_where_patches_overlap_the_nearest_counts():
    config = ASTConfig(max_length=46, num_mel_bins=36, time_stride=10, frequency_stride=10)
    large = upscaled(np.arange(12.0).reshape(3, 4), config)
    assert large.shape == (36, 46)
    for bin_index, frame in ((0, 0), (12, 13), (13, 12), (35, 45), (22, 23)):
        row = min(range(3), key=lambda patch: abs(10 * patch + 8 - (bin_index + 0.5)))
        column = min(range(4), key=lambda patch: abs(10 * patch + 8 - (frame + 0.5)))
        assert large[bin_index, frame] == 4 * row + column


def test_the_picture_shows_the_spectrogram_and_both_maps():
    model, inputs = adapted_ast("ipet"), spectrogram()
    before, after = before_and_after(model, inputs, frames=FRAMES)
    figure = plot_attention(inputs, before, after, model.config, FRAMES)
    panels = figure.axes[:3]
    assert [axes.get_title() for axes in panels] == [
        "spectrogram",
        "attention before adaptation",
        "attention after adaptation",
    ]
    images = [axes.images[0] for axes in panels]
    assert (image_of(panels[0]) == inputs.numpy().T).all()
    assert (image_of(panels[1]) == upscaled(before, model.config)).all()
    assert (image_of(panels[2]) == upscaled(after, model.config)).all()
    assert images[1].get_clim() == images[2].get_clim() == (0, max(before.max(), after.max()))
    for axes, image in zip(panels, images):
        assert image.origin == "lower" and image.get_extent() == [0, 46, 0, 36]
        assert [line.get_xdata()[0] for line in axes.get_lines()] == list(FRAMES)


def test_the_command_shows_the_attention_of_a_saved_adapter_to_a_clip(tmp_path):
    save_adapter(tmp_path / "adapter", save_ast(tmp_path / "ast"), "abc")
    soundfile.write(tmp_path / "clip.wav", tone("low"), 16000)
    chosen = {"layer": 1, "frames": FRAMES, "head": 3}
    options = ["--layer", "1", "--frames", *FRAMES, "--head", "3"]
    figure = figure_of("attention", tmp_path / "adapter", tmp_path / "clip.wav", *options)

    model = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter", attn_implementation="eager")
    extractor = ASTFeatureExtractor(num_mel_bins=36, max_length=46)
    waveform = load_waveform(tmp_path / "clip.wav", 16000)
    inputs = extractor(waveform, sampling_rate=16000, return_tensors="pt").input_values[0]
    maps = before_and_after(model, inputs, **chosen)
    shown = [image_of(axes) for axes in figure.axes[:3]]
    assert np.array_equal(shown[0], inputs.numpy().T)
    for image, attention in zip(shown[1:], maps):
        assert image == pytest.approx(upscaled(attention, model.config))
    with pytest.raises(ValueError, match="missing.wav: no such file"):
        figure_of("attention", tmp_path / "adapter", tmp_path / "missing.wav")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"input_values": torch.zeros(2, 46, 36)}, r"must have the shape \(46, 36\).*, got \(2, 46, 36\)"),
        ({"input_values": torch.full((46, 36), torch.nan)}, "`input_values` must be finite"),
        ({"layer": 3}, "`layer` must lie between -3 and 2 .*, got 3"),
        ({"layer": -4}, "`layer` must lie between -3 and 2"),
        ({"head": 4}, "`head` must lie between 0 and 3"),
        ({"frequency_patch": 3}, "`frequency_patch` must lie between 0 and 2"),
        ({"frames": (320, 336)}, r"`frames` must be .* within the 46 of the model, got \(320, 336\)"),
        ({"frames": (30, 20)}, "`frames` must be a first frame and the one after the last"),
        ({"frames": (19, 28)}, r"has the middle of no patch in it: they lie at 8, 8 \+ 10, ... up to 38. Take 10"),
    ],
)
def test_unusable_requests_for_attention_are_refused(changes, expected):
    with pytest.raises(ValueError, match=expected):
        attention_map(eager_ast(), **{"input_values": spectrogram(), "frames": FRAMES} | changes)


def test_models_that_do_not_give_their_attention_are_refused():
    inputs = spectrogram()
    with pytest.raises(ValueError, match=r"with 'sdpa', .* call model.set_attn_implementation\('eager'\)"):
        attention_map(make_ast(), inputs)
    with pytest.raises(ValueError, match="training mode"):
        attention_map(eager_ast().train(), inputs)
    with pytest.raises(ValueError, match="`model` must be an AST, got Wav2Vec2ForSequenceClassification"):
        attention_map(make_wav2vec2(attn_implementation="eager"), inputs)
    with pytest.raises(ValueError, match="`model` must be a PeftModel"):
        before_and_after(eager_ast(), inputs)
    model = get_peft_model(make_ast(), METHODS["ipet"]()).eval()
    model.set_attn_implementation("eager")  # the way out that the message names
    assert attention_map(model, inputs, frames=FRAMES).shape == (3, 4)


@pytest.mark.parametrize(
    ("attention", "expected"),
    [(np.zeros((4, 3)), r"has shape \(3, 4\) .*, got \(4, 3\)"), (np.full((3, 4), np.inf), "must be finite")],
)
def test_unusable_maps_are_refused(attention, expected):
    config = eager_ast().config
    with pytest.raises(ValueError, match=expected):
        plot_attention(spectrogram(), attention, attention, config, FRAMES)


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


# Verification


def trials(count=300, seed=3):
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < 0.4).astype(int)
    return np.round(rng.normal(0.3 + 0.25 * labels, 0.15), 2), labels  # rounded, so that scores are tied


def rates_at(scores, labels, threshold):
    """False accepts and misses where trials are accepted from that score up, counted one by one."""
    false_accepts = sum(score >= threshold for score, label in zip(scores, labels) if label == 0)
    misses = sum(score < threshold for score, label in zip(scores, labels) if label == 1)
    return false_accepts / (labels == 0).sum(), misses / (labels == 1).sum()


def test_the_histogram_counts_the_scores_of_both_kinds_of_trials():
    scores, labels = trials()
    axes = plot_verification(scores, labels).axes[0]
    steps = {patch.get_label(): patch.get_data() for patch in axes.patches}
    same, different = int(labels.sum()), int((1 - labels).sum())
    assert list(steps) == [f"same speaker ({same} trials)", f"different speakers ({different} trials)"]
    for (density, edges, _), label in zip(steps.values(), (1, 0)):
        assert (edges[0], edges[-1]) == (scores.min(), scores.max())
        assert (density * np.diff(edges)).sum() == pytest.approx(1)
        index = len(density) // 2
        inside = sum(edges[index] <= score < edges[index + 1] for score in scores[labels == label])
        share = density[index] * (edges[index + 1] - edges[index])
        assert inside > 0 and share * (labels == label).sum() == pytest.approx(inside)


def test_the_line_in_the_histogram_is_where_both_errors_are_closest():
    scores, labels = trials()
    axes = plot_verification(scores, labels).axes[0]
    (line,) = axes.get_lines()
    threshold = line.get_xdata()[0]
    gap = {value: abs(np.subtract(*rates_at(scores, labels, value))) for value in np.unique(scores)}
    assert gap[threshold] == min(gap.values())
    assert line.get_label() == f"threshold of equal errors, {threshold:.3f}"
    assert line.get_label() in legend_of(axes.get_legend())


def test_the_curve_has_the_rates_of_every_threshold():
    scores, labels = trials()
    axes = plot_verification(scores, labels).axes[1]
    rates = np.array([rates_at(scores, labels, threshold) for threshold in [*np.unique(scores), np.inf]])
    low, high = axes.get_xlim()
    assert low == pytest.approx(0.001) and high < 1
    curve = axes.get_lines()[0].get_xydata()
    assert curve == pytest.approx(np.clip(rates, low, 1 - low))
    assert ((rates > low) & (rates < 1 - low)).all(axis=1).sum() > 20


@pytest.mark.parametrize("p_target", [0.01, 0.5])
def test_the_points_on_the_curve_are_those_of_equal_errors_and_of_the_lowest_cost(p_target):
    scores, labels = trials()
    axes = plot_verification(scores, labels, p_target).axes[1]
    rates = np.array([rates_at(scores, labels, threshold) for threshold in [*np.unique(scores), np.inf]])
    costs = (1 - p_target) * rates[:, 0] + p_target * rates[:, 1]
    _, equal, cheapest = axes.get_lines()
    ((x, y),) = equal.get_xydata()
    assert x == y
    above, below = rates[rates[:, 1] <= rates[:, 0]][-1], rates[rates[:, 1] >= rates[:, 0]][0]
    assert below[0] <= x <= above[0] and above[1] <= y <= below[1]
    assert cheapest.get_xydata()[0] == pytest.approx(np.clip(rates[costs.argmin()], axes.get_xlim()[0], None))
    titles = [
        f"equal error rate {100 * x:.2f} %",
        f"minDCF {costs.min() / p_target:.3f} (target probability {p_target})",
    ]
    assert legend_of(axes.get_legend()) == titles
    low, high = axes.get_ylim()
    assert all(low <= value <= high for value in (x, *cheapest.get_xydata()[0]))


def test_the_axes_of_the_curve_are_normal_deviates():
    axes = plot_verification(*trials()).axes[1]
    rates = [0.005, 0.02, 0.2, 0.4]
    places = axes.transScale.transform([(rate, rate) for rate in rates])
    assert places == pytest.approx(np.array([[NormalDist().inv_cdf(rate)] * 2 for rate in rates]))
    for axis in (axes.xaxis, axes.yaxis):
        shown = dict(zip(ticks_of(axis), axis.get_ticklocs()))
        assert shown["0.5"] == 0.005 and shown["20"] == 0.2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("scores", "labels"), [([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]), ([0.1, 0.9], [1, 0])])
def test_the_curve_of_the_best_and_the_worst_scores_can_be_written(tmp_path, scores, labels):
    figure = plot_verification(scores, labels)
    figure.savefig(tmp_path / "det.png")
    low, high = figure.axes[1].get_xlim()
    points = np.concatenate([line.get_xydata() for line in figure.axes[1].get_lines()])
    assert 0 < low < high < 1 and ((points >= low) & (points <= 1 - low)).all()


def test_trials_are_read_from_a_file(tmp_path):
    scores, labels = trials()
    path = tmp_path / "trials.csv"
    path.write_text("score,label\n" + "".join(f"{score},{label}\n" for score, label in zip(scores, labels)))
    read, direct = figure_of("verification", path, "--p_target", "0.05"), plot_verification(scores, labels, 0.05)
    for first, second in zip(read.axes, direct.axes):
        assert lines_of(first) == lines_of(second)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (([0.1, 0.2], [1, 1]), "`labels` must hold both 1 and 0"),
        (([0.1, np.nan], [1, 0]), "`scores` must be finite"),
        (([0.1, 0.2], [1, 0], 1.5), "`p_target` must be a number above 0 and below 1"),
    ],
)
def test_unusable_trials_are_refused(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        plot_verification(*arguments)


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

import json
import re
import runpy
import shutil
import sys
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import train_classification
from peft import PeftModel
from runs import arguments, run_card
from sounds import LABELS, save_ast, save_wav2vec2, write_tones
from tiny import make_ast, make_inputs, make_wav2vec2, trainable
from train_classification import main, parse_arguments
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, Trainer

from peft_audio import (
    AutoPeftModelForAudioClassification,
    load_classifier,
    query_value_projections,
    save_activations_in_half,
)
from peft_audio.data import BadAudioError, DataError
from peft_audio.losses import classification_loss
from peft_audio.trainer import (
    METHODS,
    GradientCheck,
    MethodArguments,
    UsageError,
    apply_method,
    make_config,
    multi_label_metrics,
    plot_curves,
    single_label_metrics,
)
from peft_audio.trainer.method_table import FIELD_NAMES


BACKBONES = {"ast": make_ast, "wav2vec2": make_wav2vec2}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with a data set, and a model of either kind."""
    folder = tmp_path_factory.mktemp("workspace")
    write_tones(folder / "data")
    save_ast(folder / "ast")
    save_wav2vec2(folder / "wav2vec2")
    return folder


# Methods


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_its_own_parameters_and_the_head(method, backbone):
    base = BACKBONES[backbone]()
    names = {name for name, _ in base.named_parameters()}
    model = apply_method(base, method).train()
    model(**make_inputs(backbone)).logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in trainable(model).values())
    if method == "full":
        assert set(trainable(model)) == names
        return
    assert isinstance(model, PeftModel)
    own = {name for name in trainable(model) if "modules_to_save" not in name}
    assert bool(own) == (method not in ("linear_probe", "partial"))
    assert len(trainable(model)) > len(own)
    mark = {"lora": "lora_", "bitfit": ".bias"}.get(method, model.base_model.prefix)
    assert all(mark in name for name in own)


@pytest.mark.parametrize("method", METHODS)
def test_each_option_reaches_the_configuration(method):
    values = {
        "num_virtual_tokens": 3,
        "prompt_dropout": 0.2,
        "prompt_init": "vpt",
        "bottleneck_dim": 6,
        "adapter_activation": "silu",
        "scaling": 0.5,
        "adapter_dropout": 0.3,
        "spatial_bottleneck_dim": 5,
        "layers_to_transform": [0, 2],
        "attention_kernel": "3x5",
        "mlp_kernel": "auto",
        "sites": ["mlp", "attention"],
        "placement": "sequential",
        "residual": False,
        "train_layer_norms": True,
        "conv_kernel": 5,
        "prompt_size": 4,
        "adapter_input": "residual",
        "learn_scaling": True,
        "use_bias": True,
        "spatial_adapter": True,
        "stack": "encoder",
        "lora_r": 2,
        "lora_alpha": 3,
        "lora_dropout": 0.4,
    }
    values |= {"block": "conv", "gate": "vector", "every_nth_layer": 2}
    in_force = values | {"attention_kernel": (3, 5), "sites": ("mlp", "attention")}
    options = {name: value for name, value in values.items() if name in METHODS[method].options}
    config = getattr(apply_method(make_ast(), method, **options), "peft_config", {}).get("default")
    settings = {name: getattr(config, FIELD_NAMES.get(name, name)) for name in options}
    assert settings == {name: in_force[name] for name in options}
    assert set(METHODS[method].options) - {"reduction_factor"} == set(options)


def test_methods_have_the_papers_settings():
    mlp, ipet = make_config("parallel_mlp", bottleneck_dim=32), make_config("ipet", bottleneck_dim=32)
    for name in ("bottleneck_dim", "activation", "scaling", "dropout", "adapter_input", "spatial_adapter", "use_bias"):
        assert getattr(mlp, name) == getattr(ipet, name), name
    joint = make_config("joint")
    assert (joint.adapter_input, joint.activation, joint.scaling, joint.dropout) == ("normalized", "gelu", 1.0, 0.0)
    assert (joint.spatial_adapter, joint.reduction_factor, joint.num_virtual_tokens) == (True, 4, 12)


@pytest.mark.parametrize(
    ("text", "kernel"), [("1x3", (1, 3)), ("5x1", (5, 1)), ("3x11", (3, 11)), ("auto", "auto"), ("none", None)]
)
def test_kernels_are_frequency_by_time(text, kernel):
    config = make_config("time_freq_conv", attention_kernel=text)
    assert (config.attention_kernel, config.mlp_kernel) == (kernel, "auto")
    assert make_config("time_freq_conv", mlp_kernel=text).mlp_kernel == kernel


@pytest.mark.parametrize("text", ["2x3", "ax3", "1x3x3", "3", "0x3", "-1x3", "x", "", "None"])
def test_bad_kernels_are_named(text):
    expected = re.escape("--mlp_kernel must be FREQUENCYxTIME, two odd numbers (e.g. 1x3), auto or none, got ")
    with pytest.raises(ValueError, match=expected + repr(text)):
        make_config("time_freq_conv", mlp_kernel=text)


def test_joint_starts_its_prompts_as_the_model_allows():
    for make_model, start in ((make_ast, "vpt"), (make_wav2vec2, "xavier_uniform")):
        assert apply_method(make_model(), "joint").peft_config["default"].prompt_init == start
    chosen = apply_method(make_ast(), "joint", prompt_init="xavier_uniform")
    assert chosen.peft_config["default"].prompt_init == "xavier_uniform"


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("ipet", {"lora_r": 4}, ["--method ipet does not take --lora_r", "--num_virtual_tokens", "lora."]),
        ("linear_probe", {"bottleneck_dim": 4}, ["it takes no options"]),
        ("dreams", {}, ["--method dreams is unknown", "embedding_prompt"]),
        ("ipet", {"num_virtual_tokens": 0}, ["num_virtual_tokens", "0"]),
    ],
)
def test_unusable_options_are_refused(method, options, expected):
    with pytest.raises(ValueError) as error:
        make_config(method, **options)
    assert all(part in str(error.value) for part in expected), str(error.value)


def test_lora_says_what_it_looked_for():
    with pytest.raises(ValueError, match="no query and value projections in Sequential.*0, 1.*q_proj and v_proj"):
        query_value_projections(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)))


def test_options_of_several_words_and_switches_come_from_the_command_line(workspace, tmp_path):
    more = ("--sites", "attention", "mlp", "--residual", "False", "--train_layer_norms", "--layers_to_transform", "-1")
    _, _, given, _ = parse_arguments(arguments(workspace, tmp_path, *more, method="bottleneck"))
    assert given.options() == {
        "sites": ["attention", "mlp"],
        "residual": False,
        "train_layer_norms": True,
        "layers_to_transform": [-1],
    }


def test_every_option_belongs_to_a_method():
    options = set(vars(MethodArguments(method="ipet"))) - {"method"}
    assert options == {option for row in METHODS.values() for option in row.options}


# Loss and metrics


def test_loss_is_the_mean_over_all_clips_of_a_step():
    logits = torch.randn(6, 4)
    for labels in (torch.tensor([0, 1, 2, 3, 0, 1]), torch.randint(0, 2, (6, 4)).float()):
        whole = classification_loss({"logits": logits}, labels)
        parts = [
            classification_loss({"logits": logits[part]}, labels[part], num_items_in_batch=labels.numel())
            for part in (slice(0, 2), slice(2, 6))
        ]
        torch.testing.assert_close(sum(parts), whole)
    torch.testing.assert_close(whole, torch.nn.functional.binary_cross_entropy_with_logits(logits, labels))


def test_metrics_of_known_predictions():
    logits = torch.tensor([[2.0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 0, 2]]).numpy()
    values = single_label_metrics(SimpleNamespace(predictions=logits, label_ids=torch.tensor([0, 1, 1, 2]).numpy()))
    assert values["accuracy"] == 0.75
    assert values["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)

    logits = torch.tensor([[3.0, -1, -1], [2, -1, -1], [1, 4, -1]]).numpy()
    targets = torch.tensor([[1.0, 0, 0], [0, 0, 0], [1, 1, 0]]).numpy()
    values = multi_label_metrics(SimpleNamespace(predictions=(logits, "hidden"), label_ids=targets))
    assert values["map"] == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)
    assert values["micro_f1"] == pytest.approx(2 * 3 / (2 * 3 + 1))


def test_a_new_task_with_as_many_labels_gets_a_new_output_layer(tmp_path):
    path = save_ast(tmp_path, id2label=dict(enumerate("abcde")))
    old = AutoModelForAudioClassification.from_pretrained(path).classifier.dense.weight
    assert torch.equal(load_classifier(path, list("abcde")).classifier.dense.weight, old)
    renewed = load_classifier(path, list("vwxyz"))
    assert not torch.equal(renewed.classifier.dense.weight, old)
    assert renewed.config.label2id == {"v": 0, "w": 1, "x": 2, "y": 3, "z": 4}


# Whole runs


@pytest.mark.parametrize(
    ("model", "method", "more"),
    [
        ("ast", "ipet", ("--num_virtual_tokens", "2", "--bottleneck_dim", "4", "--max_length", "30")),
        ("ast", "lora", ("--lora_r", "2", "--max_length", "30")),
        ("ast", "full", ("--max_length", "30")),
        ("wav2vec2", "linear_probe", ()),
    ],
)
def test_a_run_leaves_a_model_that_its_card_can_load(workspace, tmp_path, monkeypatch, capsys, model, method, more):
    results = main(arguments(workspace, tmp_path, "--fold", "1", *more, model=model, method=method))
    weights = tmp_path / ("model.safetensors" if method == "full" else "adapter_model.safetensors")
    assert json.loads((tmp_path / "all_results.json").read_text()) == results
    assert results["adapter_bytes"] == weights.stat().st_size
    assert (results["train_samples"], results["eval_samples"]) == (6, 6)
    assert 0 <= results["eval_accuracy"] <= 1
    assert {"eval_loss", "eval_macro_f1", "train_loss", "train_seconds"} <= set(results)
    assert results["skipped_files"] == 0
    assert 0 < results["trainable_parameters"] <= results["total_parameters"]
    assert results["epoch"] == 2
    assert results["learning_rate"] == METHODS[method].learning_rate
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")

    metadata = (tmp_path / "README.md").read_text().split("---")[1]
    assert "pipeline_tag: audio-classification" in metadata
    assert str(workspace) not in metadata
    assert run_card(tmp_path, monkeypatch, capsys)[0] in LABELS

    extractor = AutoFeatureExtractor.from_pretrained(tmp_path)
    if model == "ast":
        assert extractor.max_length == 30
    if method in ("ipet", "linear_probe"):
        reloaded = AutoPeftModelForAudioClassification.from_pretrained(str(tmp_path))
        assert list(reloaded.config.id2label.values()) == sorted(LABELS)


@pytest.mark.parametrize("model", ["ast", "wav2vec2"])
def test_several_labels_a_clip(workspace, tmp_path, monkeypatch, capsys, model):
    shutil.copytree(workspace / "data", tmp_path / "data")
    rows = (tmp_path / "data" / "metadata.csv").read_text().splitlines()
    rows = [row.replace(",low,", ",low;tonal,") for row in rows]
    (tmp_path / "data" / "metadata.csv").write_text("\n".join(rows))
    out = tmp_path / "out"
    results = main(
        arguments(
            workspace, out, "--fold", "2", "--max_seconds", "0.2", model=model, method="parallel_mlp",
            data=tmp_path / "data",
        )
    )  # fmt: skip
    assert {"eval_map", "eval_micro_f1"} <= set(results)
    assert "eval_accuracy" not in results
    assert len(run_card(out, monkeypatch, capsys)[0].splitlines()) == 4
    config = AutoPeftModelForAudioClassification.from_pretrained(str(out)).config
    assert config.problem_type == "multi_label_classification"


def test_a_run_goes_on_from_its_checkpoint(workspace, tmp_path):
    more = ("--fold", "1", "--learning_rate", "1e-2", "--lr_scheduler_type", "constant")
    main(arguments(workspace, tmp_path / "whole", *more, "--num_train_epochs", "4", "--save_strategy", "no"))
    assert not list((tmp_path / "whole").glob("checkpoint-*"))

    half = arguments(workspace, tmp_path / "half", *more)
    main(half)
    (checkpoint,) = (tmp_path / "half").glob("checkpoint-*")
    assert int(checkpoint.name.partition("-")[2]) == 2
    main([*half, "--num_train_epochs", "4", "--resume_from_checkpoint", "True"])
    results = [json.loads((tmp_path / name / "all_results.json").read_text()) for name in ("whole", "half")]
    assert results[0]["eval_loss"] == pytest.approx(results[1]["eval_loss"], abs=1e-4)

    with pytest.raises(FileNotFoundError, match="resume_from_checkpoint nowhere: no such checkpoint"):
        main([*half, "--resume_from_checkpoint", "nowhere"])


def test_the_finished_folder_goes_to_the_hub_as_it_is(workspace, tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr(Trainer, "init_hf_repo", lambda self: vars(self).update(hub_model_id="me/out"))
    monkeypatch.setattr(Trainer, "push_to_hub", lambda *args, **kwargs: pytest.fail("would replace the card"))
    monkeypatch.setattr(huggingface_hub, "upload_folder", lambda **values: pushed.append(values))
    main(arguments(workspace, tmp_path, "--push_to_hub", "--fold", "1", method="linear_probe"))
    assert [(values["repo_id"], values["folder_path"]) for values in pushed] == [("me/out", str(tmp_path))]
    assert "location = 'me/out'" in (tmp_path / "README.md").read_text()


def test_bad_files_stop_a_run_or_are_skipped_and_counted(workspace, tmp_path):
    shutil.copytree(workspace / "data", tmp_path / "data")
    (tmp_path / "data" / "03.wav").write_bytes(b"")
    call = arguments(workspace, tmp_path / "out", "--fold", "1", method="linear_probe", data=tmp_path / "data")
    with pytest.raises(BadAudioError, match=r"1 of 12 audio files(.|\n)*03\.wav: empty"):
        main(call)
    results = main([*call, "--skip_bad_files"])
    assert results["skipped_files"] == 1
    assert results["train_samples"] + results["eval_samples"] == 11


def test_features_on_disk_give_the_same_run_and_are_computed_once(workspace, tmp_path, monkeypatch):
    call = arguments(workspace, tmp_path / "out", "--fold", "1")
    expected = main(call)
    cached = [*call, "--cache_dir", str(tmp_path / "cache")]
    assert main(cached)["eval_loss"] == expected["eval_loss"]
    monkeypatch.setattr("peft_audio.data.feature_cache.load_clip", lambda *_, **__: pytest.fail("decoded again"))
    assert main(cached)["eval_loss"] == expected["eval_loss"]


@pytest.mark.parametrize(
    ("change", "error", "expected"),
    [
        (("--lora_r", "4"), UsageError, "does not take --lora_r"),
        (("--num_virtual_tokens", "-1"), UsageError, "num_virtual_tokens"),
        (("--fold", "9"), DataError, "fold 9 does not exist, the folds are 1, 2, 3"),
        (("--dataset_name", "some/data"), UsageError, "either --data_dir"),
        (("--model_name_or_path", "/absent"), UsageError, "model_name_or_path must be .* no such folder"),
        (
            ("--method", "time_freq_conv", "--attention_kernel", "2x3"),
            UsageError,
            "--attention_kernel must be .*'2x3'",
        ),
        (("--method", "time_freq_conv", "--mlp_kernel", "1x3x3"), UsageError, "--mlp_kernel must be .*'1x3x3'"),
        (
            ("--method", "input_prompt", "--prompt_size", "40", "--fold", "1"),
            UsageError,
            "--method input_prompt: `prompt_size` must be at most half",
        ),
        (("--max_seconds", "0.01"), UsageError, "--max_seconds 0.01: this model needs at least 0.175 s"),
    ],
)
def test_unusable_arguments_are_named(workspace, tmp_path, change, error, expected):
    with pytest.raises(error, match=expected):
        main(arguments(workspace, tmp_path, *change))


def test_a_kernel_over_frequency_is_for_models_with_patches(workspace, tmp_path):
    more = ("--mlp_kernel", "3x1", "--fold", "1")
    with pytest.raises(UsageError, match=r"--method time_freq_conv: `mlp_kernel` must be \(1, time\) on wav2vec2"):
        main(arguments(workspace, tmp_path, *more, model="wav2vec2", method="time_freq_conv"))


def test_activations_in_half_precision_reach_the_layers(workspace, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        train_classification, "save_activations_in_half", lambda model: seen.append(save_activations_in_half(model))
    )
    main(arguments(workspace, tmp_path, "--half_precision_activations", "True"))
    assert seen[-1].get_base_model().audio_spectrogram_transformer.layers[0]._saving_context is not None


def test_activations_in_half_precision_are_for_adapted_layers(workspace, tmp_path):
    with pytest.raises(UsageError, match="--method linear_probe: .*whose encoder layers have adapters"):
        main(arguments(workspace, tmp_path, "--half_precision_activations", "True", method="linear_probe"))


def test_input_length_is_for_spectrogram_models(workspace, tmp_path):
    with pytest.raises(UsageError, match="--max_length 100 is for AST.*'wav2vec2'.*use max_seconds"):
        main(arguments(workspace, tmp_path, "--max_length", "100", "--fold", "1", model="wav2vec2"))


def test_parameters_without_gradient_are_reported(caplog):
    check = GradientCheck()
    model = torch.nn.ModuleDict({"used": torch.nn.Linear(2, 2), "unused": torch.nn.Linear(2, 2)})
    model["used"](torch.ones(1, 2)).sum().backward()
    check.on_pre_optimizer_step(None, None, None, model=model)
    check.on_epoch_end(None, None, None)
    assert "2 of the parameters to train got no gradient" in caplog.text
    assert "unused.weight" in caplog.text


def test_the_command_line_reports_errors_in_one_line(workspace, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_classification.py", *arguments(workspace, tmp_path, "--fold", "9")])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(train_classification.__file__, run_name="__main__")
    assert stop.value.code in (1, 2)
    assert re.fullmatch("error: .*fold 9 does not exist.*\n", capsys.readouterr().err.splitlines(True)[-1])


# Reports


def test_curves_without_evaluation(tmp_path):
    plot_curves([{"loss": 1.0, "epoch": 1.0}], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000

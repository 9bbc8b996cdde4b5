"""Every method through the whole training script: what trains, what is saved, and what its card loads again."""

import warnings

import pytest
import torch
import train_classification
from runs import arguments, run_card
from safetensors.torch import load_file
from sounds import LABELS, save_model, write_tones
from tiny import make, make_inputs, trainable

from peft_audio.trainer import METHODS, apply_method
from peft_audio.trainer.command_line import silence_peft


BACKBONES = ("ast", "wav2vec2")
HEADS = ("classifier.", "projector.")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    write_tones(folder / "data", clips=6, folds=2)
    for backbone in BACKBONES:
        save_model(folder / backbone, backbone)
    return folder


def logits(model, backbone):
    with torch.no_grad():
        return model.eval()(**make_inputs(backbone)).logits


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_and_its_card_loads_it_again(workspace, tmp_path, monkeypatch, capsys, method, backbone):
    seen = []

    def watched(*args, **options):
        model = apply_method(*args, **options)
        seen.append((model, logits(model, backbone)))
        return model

    monkeypatch.setattr(train_classification, "apply_method", watched)
    monkeypatch.setattr(train_classification, "plot_curves", lambda *args: None)  # half of the time of a run
    more = ("--fold", "1", "--num_train_epochs", "1", "--warmup_steps", "0", "--learning_rate", "0.03")
    more += ("--save_strategy", "no", "--eval_strategy", "no", "--max_seconds", "0.2")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        silence_peft()
        train_classification.main(arguments(workspace, tmp_path, *more, model=backbone, method=method))
        printed, variables = run_card(tmp_path, monkeypatch, capsys)
    # Deprecations inside other libraries aside, nobody is warned of anything.
    assert [str(w.message) for w in caught if issubclass(w.category, (UserWarning, FutureWarning))] == []

    model, before = seen[-1]  # the first was made before the data were read, to see whether it can be
    trained = logits(model, backbone)
    assert (trained - before).abs().max() > 1e-3
    torch.testing.assert_close(logits(variables["model"], backbone), trained, atol=1e-6, rtol=1e-5)
    assert list(variables["model"].config.id2label.values()) == sorted(LABELS)
    assert printed in LABELS


def test_a_base_model_of_the_hub_saves_quietly_without_a_connection(tmp_path):
    base = make("ast")
    base.name_or_path = "some/base"
    model = apply_method(base, "bitfit")
    with pytest.warns(UserWarning, match="Could not find a config file in some/base"):
        model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        silence_peft()
        model.save_pretrained(tmp_path)


# Checkpoints


def expected_names(method, names):
    """The parameters of a classifier of four layers that `method` is to train and to save."""
    upper = {name for name in names if ".layers.2." in name or ".layers.3." in name}
    own = {"linear_probe": set(), "partial": upper, "bitfit": {name for name in names if name.endswith(".bias")}}
    return own[method] | {name for name in names if name.startswith(HEADS)}


def plain(name):
    """A parameter's name in the model without PEFT around it."""
    for part in ("base_model.model.", ".modules_to_save.default", ".modules_to_save", ".original_module"):
        name = name.replace(part, "")
    return name


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", ["linear_probe", "partial", "bitfit"])
def test_checkpoints_hold_what_trains_and_nothing_else(tmp_path, method, backbone):
    base = make(backbone, num_hidden_layers=4)
    names = {name for name, _ in base.named_parameters()}
    expected = expected_names(method, names)
    assert 0 < len(expected) < len(names)
    model = apply_method(base, method).train()
    assert {plain(name) for name in trainable(model)} == expected

    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    model(**make_inputs(backbone)).logits.square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=1e-2).step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    # Attention does not depend on the keys' biases, so they may stay.
    keys = {name for name in trainable(model) if name.endswith("k_proj.bias")}
    assert changed | keys == set(trainable(model))
    assert changed - keys

    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert {plain(name) for name in saved} == expected
    parameters = {plain(name): parameter for name, parameter in trainable(model).items()}
    for name, tensor in saved.items():
        if ".original_module" not in name:  # PEFT writes the biases of the frozen head with all others
            assert torch.equal(tensor, parameters[plain(name)]), name


def test_all_biases_of_a_waveform_model_train_those_of_its_front_end_too():
    model = apply_method(make("wav2vec2"), "bitfit").train()
    front_end = {name: p for name, p in model.named_parameters() if ".feature_extractor." in name}
    biases = {name: p for name, p in front_end.items() if name.endswith(".bias")}
    assert biases
    model(**make_inputs("wav2vec2")).logits.square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in biases.values())
    assert all(front_end[name].grad is None for name in set(front_end) - set(biases))

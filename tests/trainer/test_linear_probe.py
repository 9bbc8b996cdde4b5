"""The linear probe that a training is compared with."""

import numpy as np
import pytest
import torch
from clips import Clips
from peft import LoraConfig, get_peft_model
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from tiny import BACKBONES, METHODS, each_typical_backbone, make, make_inputs, randomize

from peft_audio import cache_frozen, head_modules, use_padding_mask
from peft_audio.trainer import AudioTrainer, AudioTrainingArguments, single_label_metrics
from peft_audio.trainer.linear_probe import fit_and_score, has_frozen_base, head_features


def stand_ins(model):
    return {path: vars(module)["forward"] for path, module in model.named_modules() if "forward" in vars(module)}


def head_input(base, inputs):
    """What the head of a base model reads, by the architecture's own outputs."""
    states = (
        base.base_model(**inputs)
        if hasattr(base, "base_model") and base.base_model is not base
        else base.encoder(**inputs)
    )
    pooled = getattr(states, "pooler_output", None)
    return states.last_hidden_state.mean(1) if pooled is None else pooled


@each_typical_backbone
@pytest.mark.parametrize("method", ["ipet", "lora", "linear_probe"])
@torch.no_grad()
def test_features_are_those_of_the_base_model(backbone, method):
    base, inputs = BACKBONES[backbone](), make_inputs(backbone)
    expected = head_input(base, inputs)
    config = LoraConfig(target_modules=["q_proj", "query"], modules_to_save=head_modules(base))
    model = randomize(get_peft_model(base, config if method == "lora" else METHODS[method]())).train()
    labels, before = torch.arange(len(expected)), stand_ins(model)
    features, found = head_features(model, [{**inputs, "labels": labels}])
    np.testing.assert_allclose(features, expected.numpy(), atol=1e-5)
    assert found.tolist() == labels.tolist() and model.training
    assert stand_ins(model) == before


@pytest.mark.parametrize("method", [*METHODS, "lora", "bitfit", "full", "head"])
def test_it_is_said_whether_the_base_model_is_still_there(method):
    base = BACKBONES["ast"]()
    if method in ("lora", "bitfit"):
        options = {"bias": "all"} if method == "bitfit" else {}
        model = get_peft_model(
            base, LoraConfig(target_modules=["q_proj", "query"], modules_to_save=["classifier"], **options)
        )
    elif method in ("full", "head"):
        model = base.requires_grad_(method == "full")
        base.classifier.requires_grad_(True)
    else:
        model = get_peft_model(base, METHODS[method]())
    assert has_frozen_base(model) == (method not in ("bitfit", "full"))
    if method in ("bitfit", "full"):
        with pytest.raises(ValueError, match="weights of this .* train too"):
            head_features(model, [])


@torch.no_grad()
def test_padding_is_left_out_of_the_mean():
    base, inputs = BACKBONES["wav2vec2-stable"]().requires_grad_(False), make_inputs("wav2vec2-stable")
    length = inputs["input_values"].shape[1]
    mask = (torch.arange(length) < length // 2).long().expand(2, -1)
    features, _ = head_features(base, [{**inputs, "attention_mask": mask, "labels": torch.zeros(2)}])
    alone = head_input(base, {"input_values": inputs["input_values"][:, : length // 2]})
    np.testing.assert_allclose(features[:2], alone.numpy()[:2], atol=1e-4)


@pytest.mark.parametrize("method", ["ipet", "linear_probe"])
@torch.no_grad()
def test_what_whispers_padding_mask_leaves_out_is_left_out(method):
    base = use_padding_mask(make("whisper", max_source_positions=20))
    features = torch.randn(2, 12, 40)
    features[1, :, 24:] = features.min()  # 12 of 20 tokens
    states = base.encoder(features).last_hidden_state
    expected = torch.stack([states[0].mean(0), states[1, :12].mean(0)])
    model = get_peft_model(base, METHODS[method]())
    found, _ = head_features(model, [{"input_features": features, "labels": torch.zeros(2)}])
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_scores_are_those_of_logistic_regression():
    generator = np.random.default_rng(0)
    features, others, labels = generator.normal(size=(40, 6)), generator.normal(size=(9, 6)), np.arange(40) % 4
    scaler = StandardScaler().fit(features)
    expected = LogisticRegression(max_iter=1000).fit(scaler.transform(features), labels)
    logits = fit_and_score(features, labels, others)
    np.testing.assert_allclose(logits, expected.predict_log_proba(scaler.transform(others)))
    several = np.stack([labels == 1, labels > 1, labels < 9, labels > 9], axis=1).astype(float)
    scores = fit_and_score(features, several, others)
    one = LogisticRegression(max_iter=1000).fit(scaler.transform(features), labels > 1)
    np.testing.assert_allclose(scores[:, 1], one.decision_function(scaler.transform(others)))
    assert (scores[:, 2] > 0).all() and (scores[:, 3] < 0).all()  # a label that all clips have, one that none has


def test_a_class_without_clips_is_never_predicted():
    features = np.random.default_rng(0).normal(size=(12, 3))
    assert set(fit_and_score(features, np.array([0, 3] * 6), features).argmax(1)) <= {0, 3}
    assert set(fit_and_score(features, np.full(12, 2), features).argmax(1)) == {2}


def make_trainer(model, folder):
    arguments = AudioTrainingArguments(output_dir=str(folder), use_cpu=True, disable_tqdm=True, eval_strategy="no")
    return AudioTrainer(model, arguments, train_dataset=Clips("ast"), compute_metrics=single_label_metrics)


def test_the_trainer_measures_it_and_says_who_is_better(tmp_path, caplog):
    model = randomize(get_peft_model(BACKBONES["ast"](), METHODS["ipet"]()), std=3.0, seed=5)
    trainer = make_trainer(model, tmp_path)
    clips = Clips("ast")
    metrics = trainer.test(clips, clips)
    assert metrics["probe_accuracy"] == 1.0  # more features than clips
    assert metrics["eval_accuracy"] < 0.9 and "of a linear probe" in caplog.text
    assert "probe_accuracy" not in trainer.test(clips)


def test_cached_states_give_the_same(tmp_path):
    model = get_peft_model(BACKBONES["ast"](), METHODS["linear_probe"]())
    trainer, clips = make_trainer(model, tmp_path), Clips("ast")
    expected = trainer.linear_probe(clips, clips)
    states = cache_frozen(model, clips, tmp_path / "states")
    assert trainer.linear_probe(states, states) == expected

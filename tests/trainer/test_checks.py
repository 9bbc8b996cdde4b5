"""What a training that goes wrong is told."""

import math

import pytest
from clips import Clips
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from tiny import BACKBONES, METHODS

from peft_audio.trainer import AudioTrainer, AudioTrainingArguments
from peft_audio.trainer.checks import problem_with_gradients, problem_with_loss, problems_beside_probe


FALLING = [2.3, 2.0, 1.5, 1.0, 0.7, 0.5]


@pytest.mark.parametrize(
    "losses", [[2.3] * 6, [2.3, 2.31, 2.29, 2.3, 2.28, 2.3], [2.3, 2.5, 3.0, 4.0], [2.0, 1.0, 0.7, 0.9, 2.0, 2.4]]
)
def test_a_loss_that_does_not_fall_is_said(losses):
    assert "has not fallen" in problem_with_loss(losses) and "learning rate" in problem_with_loss(losses)


@pytest.mark.parametrize(
    "losses", [FALLING, [], [2.3], [2.3, 2.4, 2.5], [0.01, 0.02, 0.01, 0.02], [2.3, 2.2, 2.15, 2.1]]
)
def test_one_that_falls_or_is_short_is_not(losses):
    assert problem_with_loss(losses) is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_said_wherever_it_comes(value):
    for losses in ([value], [2.0, value], [*FALLING, value], [2.0, value, 1.0, 0.5]):
        assert "no number" in problem_with_loss(losses)


@pytest.mark.parametrize(
    "norms, is_problem", [([1, 1, 18, 159], True), ([5, 4, 3, 2], False), ([1, 30], False), ([], False)]
)
def test_gradients_that_grow_are_said(norms, is_problem):
    assert (problem_with_gradients(norms) is not None) == is_problem


@given(st.lists(st.floats(0.1, 10), min_size=4, max_size=20), st.floats(1e-3, 1e3))
def test_the_unit_of_a_gradient_norm_does_not_matter(norms, unit):
    assert (problem_with_gradients(norms) is None) == (problem_with_gradients([unit * norm for norm in norms]) is None)


@pytest.mark.parametrize("accuracy, is_problem", [(0.7, True), (0.89, False), (0.9, False), (1.0, False)])
def test_being_worse_than_a_probe_is_said(accuracy, is_problem):
    metrics = {"eval_accuracy": accuracy, "eval_accuracy_standard_error": 0.02, "eval_macro_f1": 0.0}
    assert bool(list(problems_beside_probe(metrics, {"accuracy": 0.9, "macro_f1": 0.9}))) == is_problem


def run(folder, caplog, **options):
    arguments = AudioTrainingArguments(
        output_dir=str(folder), use_cpu=True, disable_tqdm=True, save_strategy="no", eval_strategy="no",
        logging_strategy="steps", logging_steps=1, per_device_train_batch_size=4, max_steps=8, **options,
    )  # fmt: skip
    model = get_peft_model(BACKBONES["ast"](), METHODS["ipet"]())
    AudioTrainer(model, arguments, train_dataset=Clips("ast")).train()
    return caplog.text


def test_a_run_with_a_rate_of_nothing_is_told(tmp_path, caplog):
    assert "The training loss has not fallen" in run(tmp_path, caplog, learning_rate=1e-12)


def test_a_run_that_goes_well_is_told_nothing(tmp_path, caplog):
    assert "has not fallen" not in run(
        tmp_path, caplog, learning_rate=1e-2, lr_scheduler_type="constant", warmup_steps=0
    )

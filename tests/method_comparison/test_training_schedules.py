"""Learning rates against the closed form and torch's own scheduler, and the optimizers over what trains."""

import pytest
import torch
from peft import get_peft_model
from tiny import BACKBONES, METHODS
from training.optimizers import make_optimizer
from training.schedules import epoch_steps


STEPS = 7  # an epoch


def sgd(rate=2.0):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)


def rates(schedule, steps):
    """The learning rate of each step."""
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize(
    "start, stop, every, factor", [(5, 26, 1, 0.85), (10, 30, 5, 0.5), (2, 3, 1, 0.1), (3, 3, 1, 0.1)]
)
def test_the_rate_is_multiplied_once_for_every_milestone_passed(start, stop, every, factor):
    found = rates(epoch_steps(sgd(), STEPS, start, stop, every, factor), 32 * STEPS)
    passed = [max(0, (min(step // STEPS, stop - 1) - start) // every + 1) for step in range(32 * STEPS)]
    if start == stop:
        passed = [0] * (32 * STEPS)
    assert found == pytest.approx([2.0 * factor**count for count in passed])


@pytest.mark.parametrize("start, stop, every, factor", [(5, 26, 1, 0.85), (10, 30, 5, 0.5)])
def test_rates_are_those_of_multi_step_lr_stepped_after_each_epoch(start, stop, every, factor):
    found = rates(epoch_steps(sgd(), STEPS, start, stop, every, factor), 32 * STEPS)
    reference = torch.optim.lr_scheduler.MultiStepLR(sgd(), list(range(start, stop, every)), gamma=factor)
    expected = rates(reference, 32)
    assert found[::STEPS] == pytest.approx(expected)
    assert found[STEPS - 1 :: STEPS] == pytest.approx(expected)


def test_the_papers_rates_by_hand():
    ipet = rates(epoch_steps(sgd(1e-3), STEPS, 5, 26), 30 * STEPS)[::STEPS]
    assert ipet[:5] == pytest.approx([1e-3] * 5)
    assert ipet[5:7] == pytest.approx([0.85e-3, 0.7225e-3])
    assert ipet[25:] == pytest.approx([1e-3 * 0.85**21] * 5)
    openmic = rates(epoch_steps(sgd(1e-4), STEPS, 10, 30, every=5, factor=0.5), 30 * STEPS)[::STEPS]
    assert [openmic[epoch] for epoch in (9, 10, 14, 15, 29)] == pytest.approx([1e-4, 5e-5, 5e-5, 2.5e-5, 6.25e-6])


def test_the_warm_up_is_linear_and_multiplies_the_rest():
    found = rates(epoch_steps(sgd(), STEPS, 1, 2, factor=0.5, warmup_steps=10), 20)
    assert found[:STEPS] == pytest.approx([2.0 * step / 10 for step in range(STEPS)])
    assert found[STEPS:10] == pytest.approx([0.5 * 2.0 * step / 10 for step in range(STEPS, 10)])
    assert found[10:] == pytest.approx([1.0] * 10)


def test_a_resumed_schedule_goes_on_where_it_was():
    whole = rates(epoch_steps(sgd(), STEPS, 2, 6), 50)
    first = epoch_steps(sgd(), STEPS, 2, 6)
    rates(first, 20)
    state = {"optimizer": first.optimizer.state_dict(), "schedule": first.state_dict()}
    second = epoch_steps(sgd(), STEPS, 2, 6)
    second.optimizer.load_state_dict(state["optimizer"])
    second.load_state_dict(state["schedule"])
    assert rates(second, 30) == pytest.approx(whole[20:])


@pytest.mark.parametrize(
    "name, value",
    [("steps_per_epoch", 0), ("start", 0), ("stop", 4), ("every", 0), ("factor", 0.0), ("warmup_steps", -1)],
)
def test_arguments_out_of_range_are_refused(name, value):
    arguments = {"steps_per_epoch": STEPS, "start": 5, "stop": 26, name: value}
    with pytest.raises(ValueError, match=f"{name} must be .*, got {value}"):
        epoch_steps(sgd(), **arguments)


@pytest.fixture
def adapted():
    return get_peft_model(BACKBONES["ast"](), METHODS["ipet"]())


@pytest.mark.parametrize(
    "name, kind, settings",
    [
        ("adam", torch.optim.Adam, {"betas": (0.95, 0.999), "weight_decay": 5e-7}),  # IPET
        ("adamw", torch.optim.AdamW, {"weight_decay": 5e-2}),  # AAT
    ],
)
def test_optimizers_have_the_settings_and_the_trainable_parameters(adapted, name, kind, settings):
    (group,) = (optimizer := make_optimizer(adapted, name, 3e-4, **settings)).param_groups
    assert type(optimizer) is kind and group["lr"] == 3e-4
    assert {name: group[name] for name in settings} == settings
    assert group["decoupled_weight_decay"] == (name == "adamw")
    assert {id(parameter) for parameter in group["params"]} == {
        id(parameter) for parameter in adapted.parameters() if parameter.requires_grad
    }
    assert 0 < len(group["params"]) < len(list(adapted.parameters()))


def test_optimizers_that_do_not_exist_or_have_nothing_to_do_are_refused(adapted):
    with pytest.raises(ValueError, match="one of adam, adamw, got 'sgd'"):
        make_optimizer(adapted, "sgd", 1e-3)
    with pytest.raises(ValueError, match="'adam' does not take these settings.*momentum"):
        make_optimizer(adapted, "adam", 1e-3, momentum=0.9)
    with pytest.raises(ValueError, match="No parameter"):
        make_optimizer(adapted.requires_grad_(False), "adam", 1e-3)

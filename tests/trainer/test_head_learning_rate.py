"""A learning rate of the head's own."""

import pytest
import torch
from clips import Clips
from peft import LoraConfig, get_peft_model
from tiny import BACKBONES, METHODS, each_typical_backbone
from torch import nn
from transformers import TrainingArguments

from peft_audio import head_modules
from peft_audio.trainer import AudioTrainer, AudioTrainingArguments


def make_trainer(model, backbone, folder, rate, arguments=TrainingArguments, **options):
    settings = {"output_dir": str(folder), "learning_rate": 1e-3, "use_cpu": True, "report_to": [], "max_steps": 4}
    settings |= {
        "disable_tqdm": True,
        "save_strategy": "no",
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
        **options,
    }
    clips = Clips(backbone)
    return AudioTrainer(model, arguments(**settings), train_dataset=clips, head_learning_rate=rate)


def rates(trainer):
    """Learning rate by parameter name, of the parameters that train."""
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}


def is_head(name, model):
    return any(f"{module}." in name for module in head_modules(model))


@each_typical_backbone
@pytest.mark.parametrize("method", ["ipet", "linear_probe", "lora", "full"])
def test_the_head_alone_has_it(backbone, method, tmp_path):
    model = BACKBONES[backbone]()
    if method == "lora":
        config = LoraConfig(target_modules=["q_proj", "v_proj", "query", "value"], modules_to_save=head_modules(model))
        model = get_peft_model(model, config)
    elif method != "full":
        model = get_peft_model(model, METHODS[method]())
    trainer = make_trainer(model, backbone, tmp_path, 1e-2, weight_decay=0.1)
    trainer.create_optimizer()
    base = model if method == "full" else model.get_base_model()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert rates(trainer) == {name: 1e-2 if is_head(name, base) else 1e-3 for name in trained}
    decays = {group["weight_decay"] for group in trainer.optimizer.param_groups if group["lr"] == 1e-2}
    assert decays == {0.1, 0.0}  # weights and biases of the head, as before


def test_both_follow_the_schedule_and_resume(tmp_path):
    def trainer():
        torch.manual_seed(0)
        model = get_peft_model(BACKBONES["ast"](), METHODS["ipet"]())
        options = {"save_strategy": "steps", "save_steps": 2, "seed": 0}
        return make_trainer(model, "ast", tmp_path, 1e-2, **options)

    whole = trainer()
    whole.train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for (name, expected), (_, value) in zip(whole.model.named_parameters(), resumed.model.named_parameters()):
        assert torch.equal(value, expected), name
    initial = {
        round(rate / group["initial_lr"], 6) for group in whole.optimizer.param_groups for rate in [group["lr"]]
    }
    assert len(initial) == 1 and initial != {1.0}


def test_without_it_there_is_one_rate(tmp_path):
    trainer = make_trainer(get_peft_model(BACKBONES["ast"](), METHODS["ipet"]()), "ast", tmp_path, None)
    trainer.create_optimizer()
    assert set(rates(trainer).values()) == {1e-3}


def test_the_arguments_name_it_too(tmp_path):
    model = get_peft_model(BACKBONES["ast"](), METHODS["ipet"]())
    options = {"head_learning_rate": 5e-3, "eval_strategy": "no"}
    trainer = make_trainer(model, "ast", tmp_path, None, AudioTrainingArguments, **options)
    trainer.create_optimizer()
    assert set(rates(trainer).values()) == {1e-3, 5e-3}


def test_a_model_whose_head_is_not_known_is_refused(tmp_path):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

    trainer = make_trainer(Other(), "ast", tmp_path, 1e-2)
    with pytest.raises(ValueError, match="not a supported backbone"):
        trainer.create_optimizer()

"""What a process does that test_distributed.py starts: `distributed_worker.py SUITE FOLDER`, under a launcher."""

import datetime
import functools
import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from clips import Clips
from peft import PeftModel, get_peft_model
from tiny import BACKBONES, METHODS, make, make_inputs, randomize, trainable
from torch import distributed
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainingArguments


# Backbone, method, and from which seed each process draws the layers to leave out; None where none is left out.
# Of three layers, seed 0 leaves out the first and the last, seed 1 the second and the last, seed 2 the second.
GRADIENTS = {
    "ast-ipet": ("ast", "ipet", None),
    "ast-time_freq_conv": ("ast", "time_freq_conv", None),
    "wav2vec2-ipet": ("wav2vec2", "ipet", None),
    "wav2vec2-time_freq_conv": ("wav2vec2", "time_freq_conv", None),
    "wav2vec2-ipet-same layers": ("wav2vec2", "ipet", (2, 2)),
    "wav2vec2-time_freq_conv-same layers": ("wav2vec2", "time_freq_conv", (2, 2)),
    "wav2vec2-ipet-other layers": ("wav2vec2", "ipet", (0, 1)),
}
LAYERDROP = 0.5
TRAINED = ("ast", "wav2vec2")
# Further runs of wav2vec2, with whole copies of the model.
VARIANTS = {"layerdrop": {"layerdrop": LAYERDROP}, "stock": {"stock": True}}
# Backbone, method and settings of the base model of runs with the model spread over the processes. The prompts of WavLM ask the first layer for
# position biases, whose weights are spread again by that time; layer norms and the weights of hidden states stand in for
# parameters of the model's own.
SHARDED = {
    "ast": ("ast", "ipet", {}),
    "ast-layer norms": ("ast", "bottleneck_parallel", {}),
    "wav2vec2": ("wav2vec2", "ipet", {}),
    "wav2vec2-weighted sum": ("wav2vec2", "ipet", {"use_weighted_layer_sum": True}),
    "wavlm": ("wavlm", "ipet", {}),
}


def half_batch(backbone, rank):
    """Two clips, those of one process."""
    return {**make_inputs(backbone, seed=10 + rank), "labels": torch.tensor([0, 3]) + rank}


def joint_batch(backbone):
    """The clips of both processes."""
    halves = [half_batch(backbone, rank) for rank in (0, 1)]
    return {name: torch.cat([half[name] for half in halves]) for name in halves[0]}


def gradients(backbone, method, batch, seed=None, wrap=lambda model: model):
    """The gradient of every trained parameter, None where there is none; with a seed, of a model with layerdrop."""
    model = randomize(get_peft_model(BACKBONES[backbone](), METHODS[method]())).train()
    wrapped = wrap(model)
    if seed is not None:
        model.config.layerdrop = LAYERDROP
        torch.manual_seed(seed)
    wrapped(**batch).loss.backward()
    return {name: parameter.grad for name, parameter in trainable(model).items()}


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def base_model(backbone, layerdrop=0.0, use_weighted_layer_sum=False):
    if backbone == "ast":
        return make(backbone)
    return make(backbone, layerdrop=layerdrop, use_weighted_layer_sum=use_weighted_layer_sum)


def run_trainer(
    backbone,
    folder,
    method="ipet",
    batch_size=2,
    layerdrop=0.0,
    use_weighted_layer_sum=False,
    stock=False,
    base=None,
    **options,
):
    """Train three steps, evaluate, save in `folder`; `batch_size` is that of a process. Return what this one saw.

    With `base`, a folder that holds the same base model, that is loaded from there, and after the arguments are made,
    so that DeepSpeed spreads it over the processes as it is read.
    """
    model = base_model(backbone, layerdrop, use_weighted_layer_sum)
    if backbone != "ast" and not stock:
        # The Trainer multiplies the loss by the number of processes for models that take `**kwargs`, as those ought
        # to divide by the number of clips in all processes. Classifiers of waveforms give the mean of their own.
        options["average_tokens_across_devices"] = False
    clips = Clips(backbone)
    arguments = training_arguments(folder, batch_size, **options)
    if base is not None:
        model = type(model).from_pretrained(base)
    torch.manual_seed(0)
    trainer = Trainer(
        model=get_peft_model(model, METHODS[method]()),
        args=arguments,
        train_dataset=clips,
        eval_dataset=clips,
        compute_metrics=accuracy,
    )
    trainer.train()
    return what_was_seen(trainer, make_inputs(backbone))


def training_arguments(folder, batch_size, **options):
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=2,
        optim="sgd",  # the others enlarge differences of rounding
        learning_rate=0.1,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        save_strategy="no",
        eval_strategy="steps",
        eval_steps=3,
        report_to=[],
        disable_tqdm=True,
        seed=0,
        **options,
    )


def what_was_seen(trainer, inputs):
    """Evaluate and save; return what this process saw of it."""
    metrics = trainer.evaluate()
    saves = count_saves(trainer.save_model)
    wrapped = trainer.model_wrapped
    wrapped.eval()
    with torch.no_grad():
        logits = wrapped(**inputs).logits
    return {
        "processes": trainer.args.world_size,
        "kind": trainer.accelerator.distributed_type.value,
        "units": sorted({type(module).__name__ for module in wrapped.modules() if isinstance(module, FSDPModule)}),
        "metrics": {name: metrics[name] for name in ("eval_loss", "eval_accuracy")},
        "logits": logits.clone(),
        "saves": saves,
    }


def count_saves(save):
    """How often `save()` has this process write the adapter."""
    calls, save_pretrained = [], PeftModel.save_pretrained

    @functools.wraps(save_pretrained)
    def counted(*args, **kwargs):
        calls.append(args)
        return save_pretrained(*args, **kwargs)

    PeftModel.save_pretrained = counted
    try:
        save()
    finally:
        PeftModel.save_pretrained = save_pretrained
    return len(calls)


def error_of_plain_ddp():
    """What goes wrong in two steps of a model made with layerdrop, None if nothing does."""
    model = get_peft_model(make("wav2vec2", layerdrop=LAYERDROP), METHODS["ipet"]()).train()
    wrapped = DistributedDataParallel(model)
    torch.manual_seed(2)  # in both processes: with layers of their own, one waits for the other until the time is out
    try:
        for _ in range(2):
            wrapped(**half_batch("wav2vec2", 0)).loss.backward()
    except RuntimeError as error:
        return str(error)
    return None


def ddp(folder, rank):
    """Gradients and the Trainer, every process with a whole copy of the model."""
    for name, (backbone, method, seeds) in GRADIENTS.items():
        wrap = functools.partial(DistributedDataParallel, find_unused_parameters=seeds is not None)
        batch = half_batch(backbone, rank)
        torch.save(gradients(backbone, method, batch, seeds and seeds[rank], wrap), folder / f"{name}-{rank}.pt")
    for backbone in TRAINED:
        torch.save(run_trainer(backbone, folder / backbone, use_cpu=True), folder / f"{backbone}-{rank}.pt")
    for name, options in VARIANTS.items():
        torch.save(run_trainer("wav2vec2", folder / name, use_cpu=True, **options), folder / f"{name}-{rank}.pt")
    (folder / f"plain-{rank}.json").write_text(json.dumps(error_of_plain_ddp()))


def sharded(folder, rank):
    """The Trainer, with the model spread over the processes as the launcher's configuration says.

    accelerate shards over accelerators alone, and on CPUs would quietly leave the model whole. So it is told that the
    processes have one each; all else is its own way.
    """
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
    for name, (backbone, method, base) in SHARDED.items():
        seen = run_or_error(backbone, folder / name, method=method, layerdrop=LAYERDROP, **base)
        torch.save(seen, folder / f"{name}-{rank}.pt")


def run_or_error(*args, **options):
    """`run_trainer`, so that what one model cannot do leaves the others their turn."""
    try:
        return run_trainer(*args, **options)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def zero3(folder, rank):
    """`sharded` under DeepSpeed."""
    import deepspeed

    # Communication through shared memory, faster than gloo, would be compiled first, which takes a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if rank == 0:
        make("ast").save_pretrained(folder / "base")
    distributed.barrier()
    sharded(folder, rank)
    torch.save(run_or_error("ast", folder / "loaded", base=folder / "base"), folder / f"loaded-{rank}.pt")


def main(suite, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=120))
    {"ddp": ddp, "sharded": sharded, "zero3": zero3}[suite](Path(folder), distributed.get_rank())
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])

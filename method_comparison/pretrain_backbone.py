"""Pretrain a small Audio Spectrogram Transformer on generated sounds, or measure a pretrained one by linear probing.

    python method_comparison/pretrain_backbone.py --output_dir examples/assets/ast-tiny-synthetic --seed 0
    python method_comparison/pretrain_backbone.py --output_dir examples/assets/ast-tiny-synthetic --probe DATA_DIR

Pretraining needs no data: every clip is generated (see `synthetic_sounds`). The model learns two things
at once: to name the source and the temporal pattern of a clip, and to predict summary statistics of its spectrogram
("texture statistics"). The second needs far fewer clips: a transformer this small takes long to get anywhere on names
alone. The backbone is judged, while it trains and when recipes are compared, on generated sources that pretraining
never sees; real recordings take no part in pretraining.

`--probe` trains a logistic regression on the frozen features of real recordings with official folds: an audiofolder
whose metadata.csv has the columns file_name, label and fold.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import examples_path  # noqa: F401
import numpy as np
import torch
from pretraining.clips import (
    LABELS,
    MAX_LENGTH,
    NUM_MEL_BINS,
    Clips,
    generate_clips,
    held_out_sound,
    pretraining_sound,
)
from pretraining.textures import texture_targets
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from synthetic_sounds import PATTERNS, SOURCES
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    get_cosine_schedule_with_warmup,
    set_seed,
)

from peft_audio.data import DataError, extract_features, read_audiofolder
from peft_audio.trainer.command_line import parse_dataclasses
from peft_audio.utils.arguments import check_folder, check_writable, run_command
from peft_audio.utils.ranges import COUNT, SEED, Range, check_ranges


@dataclass
class Arguments:
    """What the command line takes."""

    output_dir: str = field(metadata={"help": "Folder of the model: written by pretraining, read by --probe."})
    seed: int = field(default=0, metadata={"help": "Seed of the sounds, the weights and the batches."})
    steps: int = field(default=2400, metadata={"help": "Optimizer steps."})
    batch_size: int = field(default=32, metadata={"help": "Clips in a batch."})
    num_clips: int = field(default=16_000, metadata={"help": "Clips to generate."})
    num_probe_clips: int = field(default=1200, metadata={"help": "Clips of held-out sources, half for training."})
    features_file: str | None = field(
        default=None, metadata={"help": "Where to keep the generated features (.npz), to use them again later."}
    )
    texture_size: int = field(default=96, metadata={"help": "Principal components of the texture statistics."})
    label_weight: float = field(default=0.15, metadata={"help": "Weight of the label loss beside the texture loss."})
    learning_rate: float = field(default=1.5e-3, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay of the matrices."})
    warmup_ratio: float = field(default=0.05, metadata={"help": "Share of the steps with a rising learning rate."})
    ema_decay: float = field(default=0.998, metadata={"help": "Decay of the averaged weights, which are saved."})
    kept_columns: int = field(default=16, metadata={"help": "Time columns of patches kept while patches drop out."})
    full_ratio: float = field(default=0.1, metadata={"help": "Share of the steps, at the end, on all patches."})
    save_steps: int = field(default=400, metadata={"help": "Steps between two probes and saved models."})
    num_threads: int = field(default=1, metadata={"help": "CPU threads."})
    hidden_size: int = field(default=128, metadata={"help": "Width of the model."})
    num_hidden_layers: int = field(default=4, metadata={"help": "Encoder layers."})
    probe: str | None = field(default=None, metadata={"help": "Audiofolder with folds on which to probe the model."})

    def __post_init__(self):
        check_ranges(self, RANGES)
        if self.hidden_size % 32:  # a head has 32 dimensions
            raise ValueError(f"hidden_size must be a multiple of 32, got {self.hidden_size}.")


RANGES = {
    **dict.fromkeys(("steps", "batch_size", "num_clips", "save_steps", "texture_size"), COUNT),
    **dict.fromkeys(("label_weight", "learning_rate", "weight_decay"), Range()),
    **dict.fromkeys(("warmup_ratio", "full_ratio", "ema_decay"), Range(0, 1)),
    "num_probe_clips": Range(4, COUNT.high, whole=True),  # two halves with two sources each
    "seed": Range(0, SEED.high - 1_000_003, whole=True),  # held-out clips have one that is higher by as much
    "kept_columns": Range(1, MAX_LENGTH // 16, whole=True),
    "num_threads": Range(1, 1024, whole=True),
    "num_hidden_layers": Range(1, 1000, whole=True),
    "hidden_size": Range(32, 100_000, whole=True),
}


# --- generated clips ------------------------------------------------------------------------------------------------


def load_or_generate(args: Arguments) -> tuple[Clips, Clips]:
    """Pretraining clips and held-out clips, from `features_file` where that exists.

    Raises:
        ValueError: if the file was made for another seed or other numbers of clips.
    """
    path = Path(args.features_file) if args.features_file else None
    wanted = (args.num_clips, args.num_probe_clips, args.seed)
    if path and path.exists():
        with np.load(path) as stored:
            parts = [
                Clips(*(torch.from_numpy(stored[f"{part}_{i}"]) for i in range(3))) for part in ("train", "probe")
            ]
            found = (len(parts[0]), len(parts[1]), int(stored["seed"]))
        if found != wanted:
            rule = "{} pretraining and {} held-out clips of seed {}"
            raise ValueError(f"`features_file` must hold {rule.format(*wanted)}, got {rule.format(*found)} in {path}.")
        return parts[0], parts[1]
    # Held-out clips take another seed sequence, so that no clip shares its random numbers with a pretraining clip.
    train = generate_clips(pretraining_sound, args.num_clips, args.seed, "pretraining clips")
    probe = generate_clips(held_out_sound, args.num_probe_clips, args.seed + 1_000_003, "held-out clips")
    if path:
        arrays = {"seed": np.array(args.seed)}
        for part, clips in (("train", train), ("probe", probe)):
            values = (clips.features, clips.frames, clips.labels)
            arrays.update({f"{part}_{i}": value.numpy() for i, value in enumerate(values)})
        np.savez(path, **arrays)
    return train, probe


# --- batches --------------------------------------------------------------------------------------------------------


class Batches:
    """Shuffled batches of clips, their normalized features masked as in SpecAugment."""

    def __init__(self, clips: Clips, targets: torch.Tensor, mean: float, std: float, seed: int):
        self.clips, self.targets, self.mean, self.std = clips, targets, mean, std
        self.generator = torch.Generator().manual_seed(seed)
        self.order = torch.empty(0, dtype=torch.long)

    def _next_indices(self, count):
        while len(self.order) < count:
            self.order = torch.cat([self.order, torch.randperm(len(self.clips), generator=self.generator)])
        indices, self.order = self.order[:count], self.order[count:]
        return indices

    def _mask(self, features):
        """One time and one frequency stripe of each clip are set to the mean."""
        for axis, widest in ((1, 48), (2, 8)):
            size = features.shape[axis]
            width = widest * torch.rand(len(features), 1, generator=self.generator)
            start = torch.rand(len(features), 1, generator=self.generator) * (size - width)
            position = torch.arange(size)
            stripe = (position >= start) & (position < start + width)
            features.masked_fill_(stripe.unsqueeze(3 - axis), 0.0)
        return features

    def next(self, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Inputs (size, 512, 64), texture targets (size, components), multi-hot labels (size, labels)."""
        indices = self._next_indices(size)
        features = (self.clips.features[indices].float() - self.mean) / (2 * self.std)
        return self._mask(features), self.targets[indices], self.clips.labels[indices].float()


class PatchDropout:
    """Forward hook on the embeddings that keeps a random set of time columns, the same for a whole batch.

    Position embeddings are already added, so the rest of the model sees fewer tokens in their true places. This
    regularizes, and halves the time of a step.
    """

    def __init__(self, frequency_patches: int, time_patches: int, kept_columns: int, seed: int):
        self.shape, self.kept_columns = (frequency_patches, time_patches), kept_columns
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, module, inputs, embeddings):
        if not module.training:
            return embeddings
        columns = torch.randperm(self.shape[1], generator=self.generator)[: self.kept_columns].sort().values
        patches = torch.arange(self.shape[0] * self.shape[1]).view(self.shape)[:, columns].flatten()
        return embeddings[:, torch.cat([torch.arange(2), patches + 2])]


# --- model ----------------------------------------------------------------------------------------------------------


def build_model(args: Arguments) -> ASTForAudioClassification:
    """The untrained model, its random weights set by the seed."""
    set_seed(args.seed)
    config = ASTConfig(
        hidden_size=args.hidden_size,
        num_hidden_layers=args.num_hidden_layers,
        num_attention_heads=args.hidden_size // 32,
        intermediate_size=4 * args.hidden_size,
        max_length=MAX_LENGTH,
        num_mel_bins=NUM_MEL_BINS,
        patch_size=16,
        frequency_stride=16,
        time_stride=16,
        id2label=dict(enumerate(LABELS)),
        label2id={name: index for index, name in enumerate(LABELS)},
        initializer_range=0.06,  # 0.02 is meant for widths near 768; a model this narrow then starts very slowly
    )
    model = ASTForAudioClassification(config)
    embeddings = model.audio_spectrogram_transformer.embeddings
    # Two special tokens that start out equal, as transformers has them, get equal gradients and stay equal for ever.
    for tokens in (embeddings.cls_token, embeddings.distillation_token, embeddings.position_embeddings):
        torch.nn.init.trunc_normal_(tokens, std=0.02)
    return model


def attribute_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the source plus that of the pattern, for logits and labels (batch, labels)."""
    sizes = (len(SOURCES), len(PATTERNS))
    parts = zip(logits.split(sizes, 1), labels.split(sizes, 1))
    return sum(torch.nn.functional.cross_entropy(part, target) for part, target in parts)


def build_optimizer(model, args: Arguments):
    """AdamW without weight decay on vectors and embeddings, and its schedule: warm-up, then cosine."""
    decayed = [parameter for parameter in model.parameters() if parameter.ndim in (2, 4)]
    others = [parameter for parameter in model.parameters() if parameter.ndim not in (2, 4)]
    groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.98))
    warmup = int(args.warmup_ratio * args.steps)
    return optimizer, get_cosine_schedule_with_warmup(optimizer, warmup, args.steps)


@torch.inference_mode()
def pooled_features(model: ASTForAudioClassification, input_values: torch.Tensor) -> np.ndarray:
    """Frozen features (n, hidden_size) of normalized inputs (n, 512, 64)."""
    model.eval()
    outputs = [model.audio_spectrogram_transformer(batch).pooler_output for batch in input_values.split(32)]
    return torch.cat(outputs).numpy()


def held_out_accuracy(model, clips: Clips, mean: float, std: float) -> float:
    """Accuracy of a linear probe that names held-out sources, trained on one half of the clips."""
    features = pooled_features(model, (clips.features.float() - mean) / (2 * std))
    targets, half = clips.labels.float().argmax(1).numpy(), len(clips) // 2
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.03, max_iter=1000))
    return probe.fit(features[:half], targets[:half]).score(features[half:], targets[half:])


def training_step(model, texture_head, batch, optimizer, label_weight: float) -> np.ndarray:
    """Take an optimizer step on a batch of `Batches`. Returns the texture loss and the label loss."""
    model.train()
    input_values, target, labels = batch
    pooled = model.audio_spectrogram_transformer(input_values).pooler_output
    texture_loss = torch.nn.functional.mse_loss(texture_head(pooled), target)
    label_loss = attribute_loss(model.classifier(pooled), labels)
    loss = texture_loss + label_weight * label_loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_([*model.parameters(), *texture_head.parameters()], 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return np.array([texture_loss.item(), label_loss.item()])


def pretrain(args: Arguments) -> dict:
    """Pretrain, save the model and its feature extractor in `output_dir`, and return what was measured."""
    train, probe = load_or_generate(args)
    mean, std = train.statistics()
    extractor = ASTFeatureExtractor(num_mel_bins=NUM_MEL_BINS, max_length=MAX_LENGTH, mean=mean, std=std)
    model = build_model(args)
    embeddings = model.audio_spectrogram_transformer.embeddings
    dropout = PatchDropout(*embeddings.get_shape(model.config), args.kept_columns, args.seed)
    hook = embeddings.register_forward_hook(dropout)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(args.ema_decay))
    targets = texture_targets(train, args.texture_size)
    texture_head = torch.nn.Linear(args.hidden_size, args.texture_size)
    optimizer, scheduler = build_optimizer(torch.nn.ModuleList([model, texture_head]), args)
    batches = Batches(train, targets, mean, std, args.seed)

    results = {"held_out_accuracy_untrained": held_out_accuracy(model, probe, mean, std)}
    print(json.dumps(results), flush=True)
    started, running = time.perf_counter(), np.zeros(2)
    for step in (progress := tqdm(range(1, args.steps + 1), desc="pretraining", mininterval=5)):
        if step > (1 - args.full_ratio) * args.steps:
            hook.remove()
        losses = training_step(model, texture_head, batches.next(args.batch_size), optimizer, args.label_weight)
        scheduler.step()
        averaged.update_parameters(model)
        running += (losses - running) / min(step, 100)
        progress.set_postfix(texture=f"{running[0]:.3f}", label=f"{running[1]:.3f}", refresh=False)
        if step % args.save_steps == 0 or step == args.steps:
            accuracy = held_out_accuracy(averaged.module, probe, mean, std)
            results.update(
                step=step,
                texture_loss=running[0],
                label_loss=running[1],
                held_out_accuracy=accuracy,
                seconds=time.perf_counter() - started,
            )
            print(json.dumps(results), flush=True)
            averaged.module.save_pretrained(args.output_dir)
            extractor.save_pretrained(args.output_dir)
    return results


# --- probe on real recordings ---------------------------------------------------------------------------------------


def read_recordings(data_dir: str, extractor: ASTFeatureExtractor):
    """Inputs (n, 512, 64), labels (n,) and folds (n,) of an audiofolder with folds.

    Raises:
        DataError: if the folder or its metadata.csv cannot be used, or there are no folds.
        BadAudioError: if some recordings cannot be used.
    """
    clips = read_audiofolder(data_dir).clips
    if any(clip.fold is None for clip in clips):
        raise DataError(
            f"{data_dir}: --probe needs a column 'fold' in metadata.csv. Add it; a fold tests, others train."
        )
    features, _ = extract_features(clips, extractor)
    inputs = torch.from_numpy(np.stack([features[clip.name]["input_values"] for clip in clips]))
    return inputs, np.array([clip.labels[0] for clip in clips]), np.array([clip.fold for clip in clips])


def fold_accuracies(features: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> list[float]:
    """Accuracy of a logistic regression on each fold; its C is chosen by cross-validation over the other folds."""
    accuracies = []
    for fold in np.unique(folds):
        train = folds != fold
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        grid = {"logisticregression__C": np.logspace(-4, 1, 11)}
        search = GridSearchCV(pipeline, grid, cv=PredefinedSplit(folds[train]))
        accuracies.append(search.fit(features[train], labels[train]).score(features[~train], labels[~train]))
    return accuracies


def probe_recordings(args: Arguments) -> dict:
    """Linear probes of the model in `output_dir` and of the same architecture untrained."""
    extractor = ASTFeatureExtractor.from_pretrained(args.output_dir)
    inputs, labels, folds = read_recordings(args.probe, extractor)
    results = {}
    untrained = build_model(args)
    for name, model in (
        ("pretrained", ASTForAudioClassification.from_pretrained(args.output_dir)),
        ("untrained", untrained),
    ):
        accuracies = fold_accuracies(pooled_features(model, inputs), labels, folds)
        results[name] = {"mean": np.mean(accuracies), "std": np.std(accuracies), "folds": accuracies}
        print(f"{name}: {100 * np.mean(accuracies):.1f} % +- {100 * np.std(accuracies):.1f}, folds {accuracies}")
    return results


def main(arguments: list[str] | None = None) -> dict:
    (args,) = parse_dataclasses([Arguments], arguments)
    if args.probe:
        check_folder("output_dir", args.output_dir, "config.json")
        check_folder("probe", args.probe)
    else:
        check_writable("output_dir", args.output_dir)
        check_writable("features_file", Path(args.features_file or ".").parent)
    torch.set_num_threads(args.num_threads)
    return probe_recordings(args) if args.probe else pretrain(args)


if __name__ == "__main__":
    run_command(main)

"""A tour of peft_audio in ten steps: adapt, save, load, mix and take off adapters of a small bundled backbone.

    python examples/quickstart.py

Needs no network, no data and no GPU, and takes less than a minute. quickstart.ipynb has the same cells as a notebook,
made with `python examples/quickstart.py --notebook FILE`.
"""

if __name__ == "__main__" and "get_ipython" not in globals():  # a script: print the text of the cells as well
    from notebook_cells import main

    raise SystemExit(main(__file__, __doc__))

# %% [markdown]
# # A tour of peft_audio
#
# A frozen pretrained audio model, a few hundred labeled clips, and adapters: small trainable parts that are put into
# the model, trained with the transformers Trainer, and saved in files of some hundred kilobytes.

# %%
import functools
import sys
import tempfile
import time
import timeit
from pathlib import Path

import numpy as np
import torch
from peft import get_peft_model
from rich.console import Console
from rich.table import Table
from torch.utils.data import TensorDataset
from transformers import (
    ASTForAudioClassification,
    AutoFeatureExtractor,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    pipeline,
    set_seed,
)
from transformers.utils import logging

import peft_audio  # registers its tuner types with PEFT
from peft_audio import (
    AutoPeftModelForAudioClassification,
    IPETConfig,
    load_classifier,
    resize_ast,
    supported_backbones,
)


# Where the modules below are, for a notebook that is not beside them.
sys.path += ["examples", str(Path(peft_audio.__file__).parents[1] / "examples")]
from demo_small import BACKBONE, LABELS, MAX_LENGTH, SOURCES, accuracy, collate, make_task, predict
from synthetic_sounds import SAMPLING_RATE, generate


logging.set_verbosity_error()
logging.disable_progress_bar()
torch.set_num_threads(1)  # a model this small gains little from more
console = Console()
workspace = tempfile.TemporaryDirectory()  # deleted at the end
folder = Path(workspace.name)


def show(columns, rows):
    """Prints a table; columns are their titles, rows are lists of what is in them."""
    table = Table(*columns)
    for row in rows:
        table.add_row(*map(str, row))
    console.print(table)


# %% [markdown]
# Two numbers set how long the tour takes: the passes over the training clips, and the training clips of each class.

# %% tags=["parameters"]
EPOCHS = 5
CLIPS_PER_CLASS = 30

# %% [markdown]
# ## 1. A pretrained backbone
#
# The tour comes with an Audio Spectrogram Transformer (AST) that is small enough to train on a CPU and has seen
# generated sounds only. Any audio classifier of these types would do, such as
# `MIT/ast-finetuned-audioset-10-10-0.4593`.

# %%
console.print(", ".join(supported_backbones()))
backbone = ASTForAudioClassification.from_pretrained(BACKBONE)
show(
    ["Backbone", "Parameters", "Layers", "Width", "Input", "Labels"],
    [
        [
            BACKBONE.name,
            f"{backbone.num_parameters():,}",
            backbone.config.num_hidden_layers,
            backbone.config.hidden_size,
            f"{backbone.config.max_length / 100} s",
            backbone.config.num_labels,
        ]
    ],
)

# %% [markdown]
# ## 2. A small labeled data set
#
# Eight classes: one of four sounds that the backbone has not seen in pretraining, in the first or in the second half
# of a clip of 2.56 s. Pretraining taught the backbone *what* sounds, wherever it is in the clip; *when* is new to it.

# %%
TIMING_LABELS = [f"{half} {source}" for source in SOURCES for half in ("early", "late")]


def make_clip(label, rng):
    """A clip of this class (an index), with faint noise: float32, (samples,)."""
    source, late = SOURCES[label // 2], label % 2
    half = MAX_LENGTH * SAMPLING_RATE // 100 // 2  # a frame is 10 ms
    sound = generate(source, "fast_repeats", rng, snr=(20, 40), whole=True, num_samples=half).waveform
    clip = np.pad(sound, (late * half, (1 - late) * half))
    return clip + 0.003 * rng.standard_normal(2 * half, dtype=np.float32)


def make_timing_task(clips_per_class, seed):
    """Inputs (clips, frames, mel bins) and labels (clips,)."""
    labels = np.repeat(np.arange(len(TIMING_LABELS)), clips_per_class)
    clips = [make_clip(label, np.random.default_rng([seed, index])) for index, label in enumerate(labels)]
    inputs = feature_extractor(clips, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_values
    return TensorDataset(inputs, torch.from_numpy(labels))


feature_extractor = AutoFeatureExtractor.from_pretrained(BACKBONE, max_length=MAX_LENGTH)
timing_train, timing_test = make_timing_task(CLIPS_PER_CLASS, seed=1), make_timing_task(20, seed=2)
console.print(", ".join(TIMING_LABELS))
show(
    ["", "Clips", "Frames", "Mel bins"],
    [[name, *task.tensors[0].shape] for name, task in (("Training", timing_train), ("Test", timing_test))],
)

# %% [markdown]
# ## 3. An adapter on it
#
# The backbone gets a new head for our labels and, as our clips are short, a shorter input (step 8 shows what that
# saves). Then `get_peft_model` freezes it and puts IPET on it: prompts in every layer, and a bottleneck beside every
# feed-forward block. The head is trained as well, without being asked for.


# %%
def load_backbone(labels):
    """The backbone with an untrained head for `labels`, for clips of 2.56 s."""
    set_seed(0)
    return load_classifier(BACKBONE, labels, max_length=MAX_LENGTH)


config = IPETConfig(num_virtual_tokens=4, bottleneck_dim=32, scaling=1.0)
model = get_peft_model(load_backbone(TIMING_LABELS), config)
model.print_trainable_parameters()

# %% [markdown]
# ## 4. Training, with the Trainer of transformers
#
# To compare with, a linear probe: a configuration that adapts no layer trains the head alone. It can only use what the
# frozen backbone says about a clip; the adapter changes what the backbone pays attention to.


# %%
def fit(model, train, test, learning_rate):
    """Trains `model`. Returns its accuracy on `test` before and after, and the seconds that the training took."""
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=40,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        weight_decay=0.01,
        label_names=["labels"],
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model, arguments, data_collator=collate, train_dataset=train, eval_dataset=test, compute_metrics=accuracy
    )
    trainer.remove_callback(PrinterCallback)
    before = trainer.evaluate()["eval_accuracy"]
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    return before, trainer.evaluate()["eval_accuracy"], seconds


probe = get_peft_model(load_backbone(TIMING_LABELS), IPETConfig(layers_to_transform=[]))
results = {
    "Linear probe": (probe, *fit(probe, timing_train, timing_test, learning_rate=2e-2)),
    "IPET": (model, *fit(model, timing_train, timing_test, learning_rate=1e-2)),
}
show(
    ["Method", "Accuracy before %", "after %", "Trainable", "Training s"],
    [
        [
            name,
            f"{100 * before:.1f}",
            f"{100 * after:.1f}",
            f"{trained.get_nb_trainable_parameters()[0]:,}",
            f"{s:.1f}",
        ]
        for name, (trained, before, after, s) in results.items()
    ],
)
console.print(f"Chance is {100 / len(TIMING_LABELS):.1f} %.")

# %% [markdown]
# ## 5. Saving
#
# `save_pretrained` writes the adapter, the head, the labels and the input length, and a model card that says how to
# use them. With the feature extractor beside them the folder is complete. `push_to_hub` shares it.

# %%
model.save_pretrained(folder / "timing")
feature_extractor.save_pretrained(folder / "timing")
files = {f"timing/{file.name}": file for file in sorted((folder / "timing").iterdir())}
files["for comparison, the backbone"] = BACKBONE / "model.safetensors"
show(["File", "Bytes"], [[name, f"{file.stat().st_size:,}"] for name, file in files.items()])

# %% [markdown]
# ## 6. Loading, in one line
#
# The folder (or the name on the Hub) is all there is to know: the backbone is loaded and gets the head, the labels,
# the input length of the training, and the adapter. A pipeline takes the folder too, waveform in, label names out. It
# has to be told that the feature extractor is there as well, else it takes the backbone's, which is for longer clips.

# %%
loaded = AutoPeftModelForAudioClassification.from_pretrained(folder / "timing", adapter_name="timing")
logits = predict(loaded, timing_test.tensors[0])
identical = torch.equal(logits, predict(model, timing_test.tensors[0]))
console.print(f"Logits of {len(logits)} test clips, loaded and trained: {'identical' if identical else 'DIFFERENT'}")
new_label = TIMING_LABELS.index("late croak")
waveform = make_clip(new_label, np.random.default_rng(3))
(new_logits,) = predict(loaded, feature_extractor(waveform, SAMPLING_RATE, return_tensors="pt").input_values)
console.print(f"A new clip of '{TIMING_LABELS[new_label]}': {loaded.config.id2label[int(new_logits.argmax())]}")
classify = pipeline("audio-classification", model=str(folder / "timing"), feature_extractor=str(folder / "timing"))
predictions = classify(waveform, top_k=3)
show(["The pipeline says", "Probability"], [[entry["label"], f"{entry['score']:.3f}"] for entry in predictions])

# %% [markdown]
# ## 7. Two tasks, one backbone
#
# A second adapter is trained for another question, the rhythm of the same four sounds, and loaded beside the first.
# `set_adapter` chooses one, within `disable_adapter` there is none (and an untrained head), and `adapter_names` gives
# every clip of a batch its own, in one call.

# %%
rhythm_train, rhythm_test = make_task(feature_extractor, CLIPS_PER_CLASS, 3), make_task(feature_extractor, 10, 4)
rhythm = get_peft_model(load_backbone(LABELS), config)
fit(rhythm, rhythm_train, rhythm_test, learning_rate=1e-2)
rhythm.save_pretrained(folder / "rhythm")
loaded.load_adapter(folder / "rhythm", adapter_name="rhythm")

tasks = {"timing": (timing_test, TIMING_LABELS), "rhythm": (rhythm_test, LABELS)}
scores = {}
for name, (test, _) in tasks.items():
    inputs, labels = test.tensors
    loaded.set_adapter(name)
    scores[name] = [float((predict(loaded, inputs).argmax(-1) == labels).float().mean())]
    with loaded.disable_adapter():
        scores[name].append(float((predict(loaded, inputs).argmax(-1) == labels).float().mean()))
show(
    ["Adapter", "Accuracy %", "disabled %"],
    [[name, *(f"{100 * s:.1f}" for s in pair)] for name, pair in scores.items()],
)

adapter_names = ["timing", "rhythm", "rhythm", "timing"]
clips = [tasks[name][0][index * len(tasks[name][0]) // 4] for index, name in enumerate(adapter_names)]
batch = torch.stack([inputs for inputs, _ in clips])
with torch.inference_mode():
    mixed = loaded(input_values=batch, adapter_names=adapter_names).logits
show(
    ["Adapter of the clip", "Truth", "Prediction"],
    [
        [name, tasks[name][1][label], tasks[name][1][row.argmax()]]
        for name, (_, label), row in zip(adapter_names, clips, mixed)
    ],
)

# %% [markdown]
# ## 8. Short clips, less work
#
# `resize_ast` brings an AST to another input length (in frames of 10 ms) before adapters are put on it: fewer tokens,
# and position embeddings cut around the middle. The adapter remembers it, as step 6 showed.

# %%
costs = {}
for max_length in (512, 256, 128):
    resized = resize_ast(ASTForAudioClassification.from_pretrained(BACKBONE), max_length=max_length)
    inputs = torch.zeros(16, max_length, resized.config.num_mel_bins)
    seconds = min(timeit.repeat(functools.partial(predict, resized, inputs), number=1, repeat=5))
    tokens = resized.audio_spectrogram_transformer(inputs[:1]).last_hidden_state.shape[1]
    costs[max_length] = tokens, 1000 * seconds / len(inputs)
full_time = costs[512][1]
show(
    ["Frames", "Seconds of sound", "Tokens", "ms a clip", "Time saved %"],
    [
        [length, length / 100, tokens, f"{milliseconds:.2f}", f"{100 * (1 - milliseconds / full_time):.0f}"]
        for length, (tokens, milliseconds) in costs.items()
    ],
)

# %% [markdown]
# ## 9. Taking it off
#
# `unload` gives the backbone back as it was, bit for bit, with the trained head of the active adapter in it.

# %%
plain, untouched = loaded.unload(), load_backbone(TIMING_LABELS)
tensors, trained_head = plain.state_dict(), {}
unchanged = {name: torch.equal(tensors[name], tensor) for name, tensor in untouched.state_dict().items()}
console.print(
    f"{type(plain).__name__}: {sum(unchanged.values())} of {len(unchanged)} tensors are those of the backbone"
)
console.print(f"Trained: {', '.join(name for name, same in unchanged.items() if not same)}")

# %% [markdown]
# ## 10. Where to go next
#
# - Your own recordings, any backbone and sixteen methods:
#   `python examples/train_classification.py --method ipet --model_name_or_path MODEL --data_dir DIR --output_dir OUT`
# - The experiments of the papers, with their settings: `python method_comparison/run_recipe.py --list`
# - Five methods side by side on the bundled backbone: `python examples/demo_small.py`
# - All methods and what to know about them: `README.md`

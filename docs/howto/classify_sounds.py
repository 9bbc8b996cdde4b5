"""Classify sounds: an adapter beside a linear probe, on real recordings. The cells of classify_sounds.ipynb."""

# %% [markdown]
# # Classify sounds
#
# Each clip has one label: a dog, rain, a siren. This page adapts an AST to 240 recordings of ESC-10 that come with the repository,
# and compares the result with a linear probe. No network is needed. For your own data, change `MODEL` and `DATA`.

# %%
from pathlib import Path

import torch
from peft import get_peft_model

import peft_audio
from peft_audio import AutoPeftModelForAudioClassification, BottleneckAdapterConfig, load_classifier
from peft_audio.data import AudioCollator, load_feature_extractor, load_waveform, prepare_clips, read_audiofolder
from peft_audio.trainer import AudioTrainer, AudioTrainingArguments, single_label_metrics


ASSETS = Path(peft_audio.__file__).parents[1] / "examples" / "assets"
MODEL = str(ASSETS / "ast-tiny-synthetic")  # or "MIT/ast-finetuned-audioset-10-10-0.4593"
DATA = ASSETS / "esc10"  # or your folder: one folder a class, or a metadata.csv

# %% tags=["parameters"]
EPOCHS = 8

# %% [markdown]
# ## Data
#
# `fold="1"` tests on fold 1 and trains on the others. Leave it out if your data has no folds: one clip in five is then for testing.
# Clips that were cut from the same recording belong into the same fold.

# %%
feature_extractor = load_feature_extractor(MODEL)
data = prepare_clips(read_audiofolder(DATA), feature_extractor, fold="1")
print(data.description, data.labels)

# %% [markdown]
# ## Model
#
# A new head for the labels, and a small bottleneck beside every attention and feed-forward block. It starts as the identity, so
# training starts at what the pretrained model knows.

# %%
model = load_classifier(MODEL, data.labels)
model = get_peft_model(model, BottleneckAdapterConfig(bottleneck_dim=8, sites=("attention", "mlp")))
model.print_trainable_parameters()

# %% [markdown]
# ## Training
#
# `trainer.test` with the training clips also tests a linear probe: what the frozen model can do without an adapter.

# %%
arguments = AudioTrainingArguments(
    "sounds", num_train_epochs=EPOCHS, learning_rate=3e-3, head_learning_rate=1e-2, save_strategy="no"
)
trainer = AudioTrainer(
    model,
    arguments,
    train_dataset=data.train,
    eval_dataset=data.evaluation,
    data_collator=AudioCollator(feature_extractor),
    compute_metrics=single_label_metrics,
)
trainer.train()
results = trainer.test(data.test, data.train)
print(f"adapter {results['eval_accuracy']:.3f} +- {results['eval_accuracy_standard_error']:.3f}")
print(f"linear probe {results['probe_accuracy']:.3f}")

# %% [markdown]
# ## Save, load, classify a file

# %%
model.save_pretrained("sounds-adapter")
feature_extractor.save_pretrained("sounds-adapter")
loaded = AutoPeftModelForAudioClassification.from_pretrained("sounds-adapter").eval()

file = sorted(Path(DATA).rglob("*.ogg"))[0]
waveform = load_waveform(file, feature_extractor.sampling_rate)
inputs = feature_extractor(waveform, sampling_rate=feature_extractor.sampling_rate, return_tensors="pt")
with torch.inference_mode():
    probabilities = loaded(**inputs).logits.softmax(-1)[0]
for index in probabilities.argsort(descending=True)[:3].tolist():
    print(f"{file.name}: {loaded.config.id2label[index]} {probabilities[index]:.2f}")

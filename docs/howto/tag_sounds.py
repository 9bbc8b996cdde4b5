"""Tag clips with several labels each. The cells of tag_sounds.ipynb."""

# %% [markdown]
# # Tag several labels
#
# A clip can hold rain and a dog. Each label then has its own yes or no, the loss is binary cross-entropy, and the metric is mean
# average precision. This page makes such clips by mixing recordings of ESC-10 that come with the repository. No network is needed.

# %%
import csv
import random
from pathlib import Path

import soundfile
import torch
from peft import get_peft_model

import peft_audio
from peft_audio import TimeFreqConvAdapterConfig, load_classifier
from peft_audio.data import AudioCollator, load_feature_extractor, load_waveform, prepare_clips, read_audiofolder
from peft_audio.trainer import AudioTrainer, AudioTrainingArguments, multi_label_metrics


ASSETS = Path(peft_audio.__file__).parents[1] / "examples" / "assets"
MODEL = str(ASSETS / "ast-tiny-synthetic")

# %% tags=["parameters"]
EPOCHS = 8
MIXTURES = 160

# %% [markdown]
# ## Data
#
# In `metadata.csv` several labels are separated by `;`. Skip this cell if you have your own folder, and set `DATA` to it.

# %%
DATA = Path("mixtures")
DATA.mkdir(exist_ok=True)
recordings = [clip for clip in read_audiofolder(ASSETS / "esc10").clips if clip.fold != "3"]
draw = random.Random(0)
lines = [("file_name", "label", "split")]
for index in range(MIXTURES):
    split = "test" if index % 4 == 0 else "train"
    pool = [clip for clip in recordings if (clip.fold == "1") == (split == "test")]
    first, second = draw.sample(pool, 2)
    waveforms = [load_waveform(clip.source, 16000, max_seconds=4) for clip in (first, second)]
    length = min(map(len, waveforms))
    mixture = (waveforms[0][:length] + waveforms[1][:length]) / 2
    soundfile.write(DATA / f"{index}.wav", mixture, 16000)
    lines.append((f"{index}.wav", ";".join(sorted({*first.labels, *second.labels})), split))
with (DATA / "metadata.csv").open("w", newline="") as file:
    csv.writer(file).writerows(lines)

feature_extractor = load_feature_extractor(MODEL)
data = prepare_clips(read_audiofolder(DATA), feature_extractor)
print(data.description, "several labels:", data.multi_label)

# %% [markdown]
# ## Model and training
#
# `multi_label=True` sets the model up for yes and no. `AudioTrainer` has the right loss on every model type; some models of
# transformers know one label a clip only.

# %%
model = load_classifier(MODEL, data.labels, multi_label=data.multi_label)
model = get_peft_model(model, TimeFreqConvAdapterConfig(bottleneck_dim=8))
arguments = AudioTrainingArguments(
    "tags", num_train_epochs=EPOCHS, learning_rate=3e-3, head_learning_rate=1e-2, save_strategy="no"
)
trainer = AudioTrainer(
    model,
    arguments,
    train_dataset=data.train,
    eval_dataset=data.evaluation,
    data_collator=AudioCollator(feature_extractor),
    compute_metrics=multi_label_metrics,
)
trainer.train()
results = trainer.test(data.test)
print(f"mean average precision {results['eval_map']:.3f}")

# %% [markdown]
# ## Use it
#
# A label is there where its probability is above a threshold. 0.5 is a start; choose it on clips that were not trained on.

# %%
item = data.test[0]
with torch.inference_mode():
    logits = model.eval()(**AudioCollator(feature_extractor)([item]))["logits"][0]
print([data.labels[index] for index, probability in enumerate(logits.sigmoid()) if probability > 0.5])

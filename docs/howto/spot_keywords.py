"""Spot keywords in clips of a second. The cells of spot_keywords.ipynb."""

# %% [markdown]
# # Spot keywords
#
# Clips of about one second, each with one word: yes, no, stop. The encoder of Whisper has heard much speech, but it pads
# every clip to 30 seconds. `resize_whisper` makes that one second: a thirtieth of the tokens.
#
# Your folder has one folder a word. Put other words and noise into a folder `unknown`, or the model will hear a keyword in
# everything. Speech Commands on the Hub is such a data set: `read_hub_dataset("google/speech_commands", "v0.02")`.

# %%
from peft import get_peft_model

import peft_audio
from peft_audio import ParallelMLPAdapterConfig, load_classifier, use_padding_mask
from peft_audio.data import AudioCollator, load_feature_extractor, prepare_clips, read_audiofolder
from peft_audio.trainer import AudioTrainer, AudioTrainingArguments, single_label_metrics


MODEL = "openai/whisper-tiny.en"
DATA = "recordings"
SECONDS = 1

# %% tags=["parameters"]
EPOCHS = 10

# %% [markdown]
# ## Data and model
#
# Longer clips are cut to `SECONDS`. The feature extractor gets the same length as the model. `use_padding_mask` hides what is still
# padded in shorter clips.

# %%
feature_extractor = load_feature_extractor(MODEL, max_seconds=SECONDS)
data = prepare_clips(read_audiofolder(DATA), feature_extractor, max_seconds=SECONDS)
model = load_classifier(MODEL, data.labels, max_seconds=SECONDS)
use_padding_mask(model)
model = get_peft_model(model, ParallelMLPAdapterConfig(bottleneck_dim=64, activation="gelu"))
model.print_trainable_parameters()
print(data.description, "tokens a clip:", model.config.max_source_positions)

# %% [markdown]
# ## Training

# %%
arguments = AudioTrainingArguments(
    "keywords", num_train_epochs=EPOCHS, learning_rate=1e-3, head_learning_rate=3e-3, save_strategy="no"
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
results = trainer.test(data.test)
print(f"accuracy {results['eval_accuracy']:.3f}, macro F1 {results['eval_macro_f1']:.3f}")

# %% [markdown]
# ## Save and listen
#
# The adapter remembers the input of one second and the padding mask. On a device, load the model once and give it a window of one
# second, moved by half a second. A word counts when two windows in a row agree.

# %%
model.save_pretrained("keywords-adapter")
feature_extractor.save_pretrained("keywords-adapter")
loaded = peft_audio.AutoPeftModelForAudioClassification.from_pretrained("keywords-adapter")
print(loaded.config.max_source_positions, list(loaded.config.id2label.values()))

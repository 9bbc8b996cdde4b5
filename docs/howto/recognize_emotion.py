"""Recognize emotion in speech, with speakers apart. The cells of recognize_emotion.ipynb."""

# %% [markdown]
# # Recognize emotion
#
# Which emotion is in a voice, whoever speaks? Two things matter more than the method:
#
# - **Speakers must be apart.** A model that has heard a speaker's neutral voice knows the speaker. Give `metadata.csv` a column
#   `fold` with a number for each group of speakers, and test on a group that was not trained on.
# - **Classes are of different size.** Look at macro F1, the mean over classes, and not at accuracy alone.

# %%
import torch
from peft import get_peft_model
from sklearn.metrics import confusion_matrix

from peft_audio import IPETConfig, load_classifier, use_statistics_pooling
from peft_audio.data import AudioCollator, load_feature_extractor, prepare_clips, read_audiofolder
from peft_audio.trainer import AudioTrainer, AudioTrainingArguments, single_label_metrics


MODEL = "facebook/wav2vec2-base"
DATA = "recordings"  # a metadata.csv with file_name, label and fold

# %% tags=["parameters"]
EPOCHS = 10

# %% [markdown]
# ## Data and model
#
# How loud and how high a voice is changes over a clip, so the head gets mean **and** standard deviation over time
# (`use_statistics_pooling`). Clips are cut to 6 seconds.

# %%
feature_extractor = load_feature_extractor(MODEL)
data = prepare_clips(read_audiofolder(DATA), feature_extractor, fold="1", max_seconds=6)
model = load_classifier(MODEL, data.labels)
use_statistics_pooling(model)
config = IPETConfig(
    num_virtual_tokens=8, bottleneck_dim=64, adapter_input="normalized", activation="gelu", scaling=1.0, dropout=0.0
)
model = get_peft_model(model, config)
model.print_trainable_parameters()

# %% [markdown]
# ## Training
#
# `AudioTrainer` lets the prompts start as tokens of your clips.

# %%
arguments = AudioTrainingArguments(
    "emotion", num_train_epochs=EPOCHS, learning_rate=1e-3, head_learning_rate=3e-3, save_strategy="no"
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
print(f"macro F1 {results['eval_macro_f1']:.3f} +- {results['eval_macro_f1_standard_error']:.3f}")

# %% [markdown]
# ## Which are mixed up
#
# Rows are the true labels, columns what was heard. To use every speaker, run the notebook once for each fold and take the mean.

# %%
output = trainer.predict(data.test)
heard = torch.as_tensor(output.predictions).argmax(-1)
print(data.labels)
print(confusion_matrix(output.label_ids, heard, labels=range(len(data.labels))))

model.save_pretrained("emotion-adapter")
feature_extractor.save_pretrained("emotion-adapter")

"""The README's table of model types and tasks: what transformers has for the types of this package, no more and no less.

That the tasks work is tested in heads/test_task_heads.py, heads/test_task_training.py, test_auto_tasks.py and test_matrix.py.
"""

from pathlib import Path

from transformers.models.auto import modeling_auto

from peft_audio import supported_backbones


TITLES = {
    "audio-spectrogram-transformer": "Audio Spectrogram Transformer",
    "data2vec-audio": "data2vec-audio",
    "deit": "DeiT (images)",
    "hubert": "HuBERT",
    "sew": "SEW",
    "sew-d": "SEW-D",
    "unispeech": "UniSpeech",
    "unispeech-sat": "UniSpeech-SAT",
    "vit": "ViT (images)",
    "wav2vec2": "wav2vec2",
    "wav2vec2-bert": "wav2vec2-bert",
    "wav2vec2-conformer": "wav2vec2-conformer",
    "wavlm": "WavLM",
    "whisper": "Whisper",
}
COLUMNS = {
    "classes": ("MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES"),
    "classes of frames": ("MODEL_FOR_AUDIO_FRAME_CLASSIFICATION_MAPPING_NAMES",),
    "speaker embeddings": ("MODEL_FOR_AUDIO_XVECTOR_MAPPING_NAMES",),
    "recognition, CTC": ("MODEL_FOR_CTC_MAPPING_NAMES",),
    "recognition, seq2seq": ("MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",),
}


def wanted_table():
    lines = [f"| model type | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for model_type in supported_backbones():
        marks = [any(model_type in getattr(modeling_auto, name) for name in names) for names in COLUMNS.values()]
        lines.append(f"| {TITLES[model_type]} | {' | '.join('yes' if mark else '' for mark in marks)} |")
    return "\n".join(lines)


def test_the_table_is_that_of_transformers():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert wanted_table() in readme

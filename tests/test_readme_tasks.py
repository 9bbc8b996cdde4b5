"""The README's table of model types and tasks: what transformers has for the types of this package, no more and no less.

That the tasks work is tested in heads/test_task_heads.py, heads/test_task_training.py, test_auto_tasks.py, test_matrix.py and
backbones/test_other_encoders.py.
"""

from pathlib import Path

from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

from peft_audio import supported_backbones


TITLES = {
    "Audio Flamingo 3": ["audioflamingo3", "audioflamingo3_encoder"],
    "Audio Spectrogram Transformer": ["audio-spectrogram-transformer"],
    "data2vec-audio": ["data2vec-audio"],
    "DeiT, DINOv2, DINOv3, ViT (images)": ["deit", "dinov2", "dinov2_with_registers", "dinov3_vit", "vit"],
    "Granite Speech (no prompts)": ["granite_speech", "granite_speech_encoder"],
    "HuBERT": ["hubert"],
    "LASR": ["lasr_ctc", "lasr_encoder"],
    "Moonshine, Moonshine Streaming": ["moonshine", "moonshine_streaming", "moonshine_streaming_encoder"],
    "Nemotron Diarization": ["nemotron3_diarization", "nemotron3_diarization_audio"],
    "Parakeet": ["parakeet_ctc", "parakeet_encoder"],
    "Qwen2-Audio": ["qwen2_audio", "qwen2_audio_encoder"],
    "SeamlessM4T, v1 and v2": ["seamless_m4t", "seamless_m4t_v2"],
    "SEW, SEW-D": ["sew", "sew-d"],
    "Speech2Text": ["speech_to_text"],
    "SpeechT5": ["speecht5"],
    "UniSpeech": ["unispeech"],
    "UniSpeech-SAT": ["unispeech-sat"],
    "Voxtral": ["voxtral", "voxtral_encoder"],
    "wav2vec2": ["wav2vec2"],
    "wav2vec2-bert": ["wav2vec2-bert"],
    "wav2vec2-conformer": ["wav2vec2-conformer"],
    "WavLM": ["wavlm"],
    "Whisper": ["whisper"],
}
COLUMNS = {
    "classes": ("MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES"),
    "classes of frames": ("MODEL_FOR_AUDIO_FRAME_CLASSIFICATION_MAPPING_NAMES",),
    "speaker embeddings": ("MODEL_FOR_AUDIO_XVECTOR_MAPPING_NAMES",),
    "recognition, CTC": ("MODEL_FOR_CTC_MAPPING_NAMES",),
    "recognition, seq2seq": ("MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",),
}


def hears_for_a_language_model(model_type):
    return model_type in CONFIG_MAPPING and "text_config" in CONFIG_MAPPING[model_type].sub_configs


def wanted_table():
    tasks = {
        title: [
            any(model_type in getattr(modeling_auto, name) for model_type in types for name in names)
            for names in COLUMNS.values()
        ]
        + [any(map(hears_for_a_language_model, types))]
        for title, types in TITLES.items()
    }
    columns = [*COLUMNS, "language model"]
    lines = [f"| model type | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {title} | {' | '.join('yes' if mark else '' for mark in marks)} |" for title, marks in tasks.items()]
    return "\n".join(lines)


def test_every_type_has_a_row():
    assert sorted(model_type for types in TITLES.values() for model_type in types) == supported_backbones()


def test_the_table_is_that_of_transformers():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert wanted_table() in readme

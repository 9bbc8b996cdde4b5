"""Audio clips as training data: reads files without torchcodec or FFmpeg, splits them, and makes the model's inputs.

    table = read_audiofolder("recordings")  # class folders, or a metadata.csv
    data = prepare_clips(table, feature_extractor, fold="1", cache_dir="features")
    Trainer(model, args, AudioCollator(feature_extractor), data.train, data.evaluation).train()

Or step by step: `choose_splits` says which clips train, `FeatureCache` or `extract_features` compute their features,
and `FeatureDataset` pairs them with the labels. Files that cannot be used are listed by name in a `BadAudioError`.
`TorchFeatures` computes the features. `AudioCollator(feature_extractor, device="cuda")` does so on a GPU, for items with
waveforms: those of `StreamedClips`, or of a `FeatureDataset` on `FeatureCache("waveforms").compute(clips)`.
"""

from .audiofolder import AUDIO_SUFFIXES, read_audiofolder
from .clips import Clip, ClipTable, DataError, Event, fold_name
from .crops import RandomCrops, Segments
from .decoding import BadAudioError, load_clip, load_waveform
from .feature_cache import FeatureCache, Features
from .features import (
    MEL_HOP_SECONDS,
    MEL_WINDOW_SECONDS,
    AudioCollator,
    FeatureDataset,
    extract_features,
    load_feature_extractor,
    minimum_seconds,
    model_inputs,
    pads_to_fixed_seconds,
)
from .frames import FrameDataset, FrameGrid, SequenceCollator, prepare_frames
from .hub import read_hub_dataset, stream_splits
from .metadata import read_rows
from .splits import Splits, choose_splits
from .streaming import StreamedClips, StreamedInputs
from .torch_features import TorchFeatures
from .training_data import TrainingData, prepare_clips, prepare_stream
from .transcripts import SpeechCollator, SpeechData, TranscribedDataset, prepare_transcribed
from .trials import Trial, read_speakers, read_trials, recordings_of


__all__ = [
    "AUDIO_SUFFIXES",
    "MEL_HOP_SECONDS",
    "MEL_WINDOW_SECONDS",
    "AudioCollator",
    "BadAudioError",
    "Clip",
    "ClipTable",
    "DataError",
    "Event",
    "FeatureCache",
    "FeatureDataset",
    "Features",
    "FrameDataset",
    "FrameGrid",
    "RandomCrops",
    "Segments",
    "SequenceCollator",
    "SpeechCollator",
    "SpeechData",
    "Splits",
    "StreamedClips",
    "StreamedInputs",
    "TorchFeatures",
    "TrainingData",
    "TranscribedDataset",
    "Trial",
    "choose_splits",
    "extract_features",
    "fold_name",
    "load_clip",
    "load_feature_extractor",
    "load_waveform",
    "minimum_seconds",
    "model_inputs",
    "pads_to_fixed_seconds",
    "prepare_clips",
    "prepare_frames",
    "prepare_stream",
    "prepare_transcribed",
    "read_audiofolder",
    "read_hub_dataset",
    "read_rows",
    "read_speakers",
    "read_trials",
    "recordings_of",
    "stream_splits",
]

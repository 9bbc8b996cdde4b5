"""Input prompts: learnable values on the border of the spectrogram or at the ends of the waveform."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from ..backbones.spec import Backbone
from ..config import EncoderAdapterConfig
from ..modules import InputPrompt
from ..tuner.input_layer import InputParts, InputTunerLayer
from ..tuner.model import EncoderTuner
from ..upstream.registration import register_method
from ..utils.forward_pass import ForwardPass
from ..utils.validation import require, require_positive_integer
from .citations import IPET


@dataclass
class InputPromptConfig(EncoderAdapterConfig):
    """Configuration of input prompts.

    Learnable values are added to the border of the model's input, after the feature extractor's normalization. On
    inputs of fixed size (AST, Whisper, images) the border has `prompt_size` rows and columns on every side. Where the
    length varies (waveforms, wav2vec2-bert) it is the first and last `prompt_size` samples or frames of every clip. The
    values start at zero. Source: the baseline IP of Kim et al., "Integrated parameter-efficient tuning for
    general-purpose audio models", 2023.

    Args:
        prompt_size (`int`): width p of the border.

    Raises:
        ValueError: when made with a value that breaks a rule; on a model whose input is too small for two borders.

    Examples:
        >>> model = ASTForAudioClassification(ASTConfig(hidden_size=12, num_hidden_layers=1))  # input 1024 x 128
        >>> model = get_peft_model(model, peft_audio.InputPromptConfig(prompt_size=10, modules_to_save=[]))
        >>> trainable, total = model.get_nb_trainable_parameters()
        >>> trainable == 1024 * 128 - (1024 - 2 * 10) * (128 - 2 * 10)
        True
    """

    prompt_size: int = field(default=10, metadata={"help": "Rows and columns of the border, or samples at each end."})

    method_name: ClassVar[str] = "input_prompt"
    summary: ClassVar[str] = "prompts on the model's input"
    citations: ClassVar[tuple[str, ...]] = (IPET,)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive_integer("prompt_size", self.prompt_size)
        rule = "None: an input prompt belongs to the model's input, not to encoder layers"
        require(self.layers_to_transform is None, "layers_to_transform", rule, self.layers_to_transform)
        rule = "'encoder' for input prompts, which stand in the encoder's input"
        require(self.stack == "encoder", "stack", rule, self.stack)


class InputPromptModel(EncoderTuner[InputPromptConfig]):
    """Puts prompts on a backbone's input; see `InputPromptConfig`."""

    prefix = "input_prompt_"
    tuner_layer_cls = InputTunerLayer

    def target_names(self, config: InputPromptConfig, backbone: Backbone) -> list[str]:
        """Return the path of the module that the model's input enters; none where it is unknown."""
        return [] if backbone.input_name is None else [backbone.input_name]

    def check_fit(self, config: InputPromptConfig, backbone: Backbone) -> None:
        """Raise ValueError if the input's module is unknown or the input too small for two borders."""
        if backbone.input_name is None:
            raise ValueError(
                f"Input prompts need the module that the input of {backbone.model_type} enters. Register it: "
                "EncoderSpec(..., input=path, input_shape=...)."
            )
        bordered = backbone.input_shape[-2:]
        known = [length for length in bordered if length is not None]
        if len(known) == len(bordered):
            rule = f"at most half of the input's height and width {bordered} on this {backbone.model_type}"
            require(2 * config.prompt_size <= min(known), "prompt_size", rule, config.prompt_size)

    def add_to(self, target: nn.Module, config: InputPromptConfig, adapter_name: str, backbone: Backbone) -> nn.Module:
        """Return `target` with a prompt on its input, in a tuner layer."""
        if not isinstance(target, InputTunerLayer):
            target = InputTunerLayer(target, backbone, self.prefix, ForwardPass.of(self.model))
        prompt = InputPrompt(backbone.input_shape, config.prompt_size, config.init_weights)
        target.update_layer(adapter_name, InputParts(prompt), config.inference_mode)
        return target


register_method(InputPromptConfig, InputPromptModel)

"""The names of a model's parts, for PEFT's own configurations."""

from __future__ import annotations

from torch import nn

from .table import resolve


# Most models, AST before transformers 5.10, SEW-D, conformers.
QUERY_VALUE_NAMES = (("q_proj", "v_proj"), ("query", "value"), ("query_proj", "value_proj"), ("linear_q", "linear_v"))


def head_modules(model: nn.Module) -> list[str]:
    """Return the names of the modules of a model's head.

    The adapters of this package train the head by themselves. PEFT's own need these names:
    `LoraConfig(modules_to_save=head_modules(model), ...)`. By the name of an x-vector head's `feature_extractor` PEFT
    takes the encoder's too.

    Args:
        model: a model of one of `supported_backbones()`, with or without adapters.

    Raises:
        ValueError: the model type is not supported.
    """
    return list(resolve(model).head)


def query_value_projections(model: nn.Module) -> list[str]:
    """Return what a model calls its query and value projections: `LoraConfig(target_modules=...)`.

    Args:
        model: any model.

    Raises:
        ValueError: none of the known pairs of names is found.
    """
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for pair in QUERY_VALUE_NAMES:
        if names.issuperset(pair):
            return list(pair)
    raise ValueError(
        f"There are no query and value projections in {type(model).__name__}: its linear layers are called "
        f"{', '.join(sorted(names))}, looked for {' or '.join(' and '.join(pair) for pair in QUERY_VALUE_NAMES)}."
    )


def encoder_layers(model: nn.Module) -> list[str]:
    """Return the names of a model's encoder layers, from the first to the last, as in `model.named_modules()`.

    Args:
        model: a model of one of `supported_backbones()`, with or without adapters.

    Raises:
        ValueError: the model type is not supported.
    """
    return list(resolve(model).layer_names)

"""The papers' optimizers, over what trains."""

import torch


OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def make_optimizer(model: torch.nn.Module, name: str, learning_rate: float, **settings) -> torch.optim.Optimizer:
    """An optimizer over the parameters of `model` that train.

    Args:
        model: with the method already applied, so that the frozen parameters are frozen.
        name: "adam", with the weight decay in the gradient (AST, IPET: betas (0.95, 0.999), weight_decay 5e-7), or
            "adamw", with decoupled weight decay (AAT: 5e-2), on all parameters.
        learning_rate: see the papers' tables.
        settings: torch's other arguments.

    Raises:
        ValueError: there is no such optimizer or setting, or nothing trains.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"The optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}.")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("No parameter of the model has requires_grad: apply a method first, or load for training.")
    try:
        return OPTIMIZERS[name](parameters, lr=learning_rate, **settings)
    except TypeError as error:
        raise ValueError(f"The optimizer {name!r} does not take these settings: {settings} ({error}).") from None

"""The rows of the comparison on recognition, and how each trains: all adapters have about 200,000 parameters."""

from typing import Any, NamedTuple

from peft import get_peft_model

from peft_audio.trainer import apply_method, make_config


class Row(NamedTuple):
    """What the table calls a row, its `--method` and options in the training script, and the rates to choose from.

    Without a method nothing trains. `fields` are further ones of the method's configuration, `seconds` the length of the
    model's input.
    """

    title: str
    method: str | None
    rates: tuple[float | None, ...]
    options: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    seconds: int = 4


NOTHING, ADAPTER, WHOLE = (None,), (1e-3, 3e-3), (3e-5, 1e-4)
ENCODER_PROJECTIONS = r".*\.encoder\.layers\.\d+\.self_attn\.(q_proj|v_proj)"
BASE, BASE_30 = "base", "base_30"

ROWS = {
    BASE: Row("as it is, 4 s of input", None, NOTHING),
    BASE_30: Row("as it is, 30 s of input", None, NOTHING, seconds=30),
    "lora_encoder": Row(
        "LoRA, encoder, r = 32",
        "lora",
        ADAPTER,
        {"lora_r": 32, "lora_alpha": 64},
        {"target_modules": ENCODER_PROJECTIONS},
    ),
    "lora_both": Row("LoRA, both stacks, r = 11", "lora", ADAPTER, {"lora_r": 11, "lora_alpha": 22}),
    "mlp_encoder": Row("parallel MLP, encoder, h = 64", "parallel_mlp", ADAPTER, {"bottleneck_dim": 64}),
    "mlp_both": Row(
        "parallel MLP, both stacks, h = 32", "parallel_mlp", ADAPTER, {"bottleneck_dim": 32}, {"stack": "both"}
    ),
    "ipet": Row("IPET, encoder, k = 8, h = 60", "ipet", ADAPTER, {"num_virtual_tokens": 8, "bottleneck_dim": 60}),
    "full": Row("full fine-tuning", "full", WHOLE),
}
TRAINED = [name for name, row in ROWS.items() if row.method is not None]
EPOCHS, BATCH_SIZE = 2, 8


def adapted(model: Any, row: Row) -> Any:
    """The model, set up for a row."""
    if row.method is None:
        return model.requires_grad_(False)
    if not row.fields:
        return apply_method(model, row.method, **row.options)
    config = make_config(row.method, **row.options)
    for name, value in row.fields.items():
        setattr(config, name, value)
    return get_peft_model(model, config)

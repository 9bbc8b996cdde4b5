"""What the ESC-10 comparison compares: the rows of its table and, for its picture, the same methods at other sizes.

A row is named after its method, `method`, or `method:variant` where a method has several. `row@size` is that row at
another size: it takes the learning rates that were chosen for the row, fold by fold.
"""

# The adapter as in IPET's paper.
PAPER = {"adapter_input": "residual", "adapter_activation": "relu", "scaling": 0.1, "adapter_dropout": 0.1}

# IPET's two parts alone have the sizes they have in it; the rank gives LoRA about as many parameters as IPET.
ROWS = {
    "linear_probe": {},
    "embedding_prompt": {"num_virtual_tokens": 4},
    "parallel_mlp": {"bottleneck_dim": 16, **PAPER},
    "ipet": {"num_virtual_tokens": 4, "bottleneck_dim": 16, **PAPER},
    "lora": {"lora_r": 9, "lora_alpha": 18},
    "full": {},
    # AAT's own sizes: a quarter of the hidden size, 12 prompts.
    "aat_m": {},
    "aat_ms": {},
    "joint": {},
    # LoAA: kernels of size 1 or 3 over time and frequency, all with the same number of parameters.
    "time_freq_conv:T": {"bottleneck_dim": 3, "attention_kernel": "1x3", "mlp_kernel": "1x3"},
    "time_freq_conv:F": {"bottleneck_dim": 3, "attention_kernel": "3x1", "mlp_kernel": "3x1"},
    "time_freq_conv:T+F": {"bottleneck_dim": 3, "attention_kernel": "1x3", "mlp_kernel": "3x1"},
    "time_freq_conv:L": {"bottleneck_dim": 9, "attention_kernel": "1x1", "mlp_kernel": "1x1"},
    "bottleneck": {"bottleneck_dim": 8, "sites": ["attention", "mlp"]},
    "conformer": {"bottleneck_dim": 10},
    "input_prompt": {},
}
TITLES = {
    "linear_probe": "linear probe",
    "embedding_prompt": "embedding prompts",
    "parallel_mlp": "parallel MLP",
    "ipet": "IPET",
    "lora": "LoRA",
    "full": "full fine-tuning",
    "aat_m": "AAT^M",
    "aat_ms": "AAT^MS",
    "joint": "Joint",
    "time_freq_conv:T": "LoAA T",
    "time_freq_conv:F": "LoAA F",
    "time_freq_conv:T+F": "LoAA T+F",
    "time_freq_conv:L": "LoAA L (1x1)",
    "bottleneck": "bottleneck (Houlsby)",
    "conformer": "conformer",
    "input_prompt": "input prompt",
}
LEARNING_RATES = {row: [3e-3, 1e-2, 3e-2] for row in ROWS} | {"full": [3e-4, 1e-3, 3e-3]}

# From 0.1 to 10 % of the bundled backbone's parameters, with the sizes in ROWS in between.
SIZES = {
    "embedding_prompt": [{"num_virtual_tokens": k} for k in (2, 16, 64, 160)],
    "parallel_mlp": [{"bottleneck_dim": h} for h in (1, 4, 40, 80)],
    "ipet": [{"num_virtual_tokens": k, "bottleneck_dim": h} for k, h in ((1, 1), (2, 4), (8, 32), (16, 72))],
    "lora": [{"lora_r": r, "lora_alpha": 2 * r} for r in (1, 3, 20, 40)],
    "aat_m": [{"bottleneck_dim": h} for h in (1, 4, 12, 80)],
    "aat_ms": [{"bottleneck_dim": h} for h in (1, 4, 12, 40)],
    "joint": [{"bottleneck_dim": h, "num_virtual_tokens": k} for h, k in ((1, 1), (4, 4), (12, 8), (32, 24))],
    "time_freq_conv:T+F": [{"bottleneck_dim": r} for r in (1, 6, 13)],
    "time_freq_conv:L": [{"bottleneck_dim": r} for r in (1, 4, 18, 40)],
    "bottleneck": [{"bottleneck_dim": h} for h in (1, 3, 16, 38)],
    "conformer": [{"bottleneck_dim": r} for r in (1, 4, 24, 50)],
    "input_prompt": [{"prompt_size": p} for p in (1, 3, 32)],
}


def row_of(name: str) -> str:
    """The row whose learning rates `name` takes: its own, of a row."""
    return name.partition("@")[0]


def method_of(name: str) -> str:
    return row_of(name).partition(":")[0]


def size_name(row: str, size: dict) -> str:
    return f"{row}@{'-'.join(f'{value:g}' for value in size.values())}"


def title_of(name: str) -> str:
    """The readable name; that of a row in an older results file is its own."""
    row, at, size = name.partition("@")
    return TITLES.get(row, row) + (f" @ {size}" if at else "")


def expand(names: list[str]) -> list[str]:
    """`names`, with "rows" and "sizes" replaced by what they stand for; each name once."""
    groups = {"rows": list(ROWS), "sizes": [name for name in OPTIONS if name not in ROWS]}
    return list(dict.fromkeys(name for given in names for name in groups.get(given, [given])))


OPTIONS = ROWS | {size_name(row, size): ROWS[row] | size for row, sizes in SIZES.items() for size in sizes}

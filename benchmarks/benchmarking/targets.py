"""Which figure each comparison is to reach."""

from dataclasses import dataclass

from benchmarking.subjects import (
    AAT_MS,
    AST_1024,
    FULL,
    IPET,
    IPET_HALF,
    IPET_LARGE,
    LAYER_WIDE,
    LAYER_WIDE_FROZEN,
    LOAA,
    LORA,
    LORA_FROZEN,
    SIDE,
    WAV2VEC2_1,
    WAV2VEC2_3,
    Input,
)


STEP, FORWARD, FLOPS, SAVED = "step_seconds", "forward_seconds", "flops", "saved_bytes"


@dataclass(frozen=True)
class Target:
    """A ratio of two subjects' figures on one input. `at_most` is None for one that is only told."""

    source: Input
    subject: str
    baseline: str
    figure: str
    at_most: float | None = None

    @property
    def name(self) -> str:
        return f"{self.source.name}: {self.subject} / {self.baseline}, {self.figure.replace('_', ' ')}"


TARGETS = [
    Target(WAV2VEC2_1, IPET_LARGE, LAYER_WIDE, STEP, 0.47),
    Target(WAV2VEC2_1, IPET_LARGE, LAYER_WIDE_FROZEN, STEP),
    Target(WAV2VEC2_3, IPET, LORA, STEP, 0.78),
    Target(WAV2VEC2_3, IPET, LORA, FLOPS),
    Target(WAV2VEC2_3, IPET, LORA_FROZEN, STEP),
    Target(AST_1024, IPET, FULL, STEP, 0.70),
    Target(AST_1024, IPET, FULL, FLOPS),
    Target(AST_1024, IPET, LORA, STEP, 0.97),
    Target(AST_1024, IPET, LORA, SAVED, 0.91),
    Target(AST_1024, IPET_HALF, LORA, SAVED, 0.60),
    Target(AST_1024, IPET_HALF, LORA, STEP, 1.10),
    Target(AST_1024, LOAA, LORA, STEP, 1.12),
    Target(AST_1024, AAT_MS, LORA, STEP, 1.12),
    Target(AST_1024, SIDE, LORA, STEP, 0.50),
    Target(AST_1024, SIDE, LORA, SAVED, 0.12),
    Target(AST_1024, SIDE, FULL, FORWARD, 1.06),
    Target(WAV2VEC2_3, SIDE, LORA_FROZEN, STEP, 0.70),
]
# What does not depend on the machine or on chance.
EXACT = [target for target in TARGETS if target.figure == SAVED]


@dataclass(frozen=True)
class Outcome:
    """A figure that was measured, and the one to reach."""

    name: str
    value: float
    target: float | None
    at_least: bool = False
    unit: str = ""

    @property
    def is_reached(self) -> bool | None:
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target


def outcomes(targets: list[Target], rows: dict[tuple[str, str], dict]) -> list[Outcome]:
    """The ratios, from rows of figures by the names of input and subject; left out where one was not measured."""
    found = []
    for target in targets:
        pair = [
            rows.get((target.source.name, name), {}).get(target.figure) for name in (target.subject, target.baseline)
        ]
        if None not in pair:
            found.append(Outcome(target.name, pair[0] / pair[1], target.at_most))
    return found

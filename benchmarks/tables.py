"""Prints what `benchmark.py`, `memory.py` or `gpu.sh` has written as Markdown: `python benchmarks/tables.py OUT`. Needs nothing but Python."""

import json
import sys
from collections import Counter
from pathlib import Path


FULL, LORA = "full fine-tuning", "LoRA of PEFT"
CARDS = ("8", "16", "24")
COUNTED = ("AST-base, 1024 frames", "wav2vec2-base, 3 s")  # inputs whose operations and bytes are told


def main(folder: str) -> str:
    parts = [tell(Path(folder)) for tell in (methods, targets, memory, packages, tests, steps, compiled, profile)]
    text = "\n\n".join(part for part in parts if part)
    print(text)
    return text


def read(path: Path) -> dict | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def table(title: str, columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join([f"**{title}**", "", *(f"| {' | '.join(line)} |" for line in lines)])


def methods(folder: Path) -> str:
    """Every method of `benchmark.json`: steps and operations as shares of full fine-tuning's on the same input."""
    report = read(folder / "benchmark.json")
    if report is None or not report["rows"]:
        return ""
    inputs = {name: {row["method"]: row for row in rows} for name, rows in by_input(report["rows"]).items()}
    told = [name for name in COUNTED if name in inputs]
    first = next(iter(inputs))
    lora = next((row for method, row in inputs[first].items() if method.startswith(LORA)), {})
    columns = ["method", *map(short, inputs), f"{short(first)}, / LoRA"]
    columns += [f"{figure}, {short(name)}" for figure in ("FLOP", "MB") for name in told]
    columns.append("file, KB")
    lines = []
    for method in dict.fromkeys(row["method"] for row in report["rows"]):
        rows = {name: by_method.get(method, {}) for name, by_method in inputs.items()}
        cells = [ratio(rows[name], inputs[name].get(FULL, {}), "step_seconds") for name in inputs]
        cells.append(ratio(rows[first], lora, "step_seconds"))
        cells += [ratio(rows[name], inputs[name].get(FULL, {}), "flops") for name in told]
        cells += [megabytes(rows[name].get("saved_bytes")) for name in told]
        cells.append(number(rows[first].get("checkpoint_bytes"), 1e-3, ",.0f"))
        lines.append([method.replace("^MS", "^MS^"), *cells])
    return table("Steps and operations, full fine-tuning = 1", columns, lines)


def short(name: str) -> str:
    """An input's name as the head of a narrow column."""
    return name.replace("-base", "").replace(" frames", "")


def megabytes(count: float | None) -> str:
    return number(count, 1e-6, ",.0f" if count and count >= 1e6 else ".1f")


def targets(folder: Path) -> str:
    """What was compared in `benchmark.json`, and what was to be reached."""
    report = read(folder / "benchmark.json")
    if report is None or not report["targets"]:
        return ""
    lines = []
    for target in report["targets"]:
        sign, bound = ">=" if target["at_least"] else "<=", target["target"]
        value = f"{target['value']:.3g} {target['unit']}".strip()
        value = f"**{value}**" if target["reached"] is False else value
        lines.append([target["name"].replace("^MS", "^MS^"), value, "" if bound is None else f"{sign} {bound:g}"])
    return table("Targets; bold: missed", ["what", "measured", "to reach"], lines)


def memory(folder: Path) -> str:
    """The most memory of training steps in `memory.json`, and the largest batches."""
    report = read(folder / "memory.json")
    if report is None:
        return ""
    return "\n\n".join(memory_of(name, rows) for name, rows in by_input(report["rows"]).items())


def memory_of(name: str, rows: list[dict]) -> str:
    sizes = list(rows[-1]["peak_bytes"])
    lora = next((row["peak_bytes"] for row in rows if row["method"].startswith(LORA)), {})
    columns = ["method", *(f"GB, batch of {size}" for size in sizes), f"/ LoRA, batch of {sizes[-1]}"]
    columns.append(f"largest batch in {' / '.join(CARDS)} GB")
    lines = []
    for row in rows:
        # The first row is of Python and its packages, without a batch.
        cells = [number(row["peak_bytes"].get(size, row["peak_bytes"].get("0")), 1e-9, ".2f") for size in sizes]
        cells.append(ratio(row["peak_bytes"], lora, sizes[-1]))
        cells.append(" / ".join(map(str, row["largest_batches"].values())))
        lines.append([row["method"], *cells])
    return table(f"{name}, highest resident memory of a step", columns, lines)


def packages(folder: Path) -> str:
    found = read(folder / "packages.json")
    if found is None:
        return ""
    main_ones = [f"{name} {found['present'].get(name, 'missing')}" for name in ("torch", "transformers", "peft")]
    facts = [f"{found['gpu'] or 'no GPU'}, Python {found['python']}, {', '.join(main_ones)}"]
    facts += [f"Missing: {', '.join(found['missing']) or 'none'}"]
    facts += [f"Another version: {name} {text}" for name, text in found["other_version"].items()]
    return "\n".join(f"- {fact}" for fact in facts)


def tests(folder: Path) -> str:
    path = folder / "tests.jsonl"
    if not path.exists():
        return ""
    # The last line may be of a run that was ended within it.
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    results = [json.loads(line) for line in lines]
    counts = Counter(result["outcome"] for result in results)
    text = f"Tests: {', '.join(f'{count} {outcome}' for outcome, count in sorted(counts.items()))}"
    others = [result for result in results if result["outcome"] != "passed"]
    return "\n".join([text, "", *(f"- {r['outcome']}: `{r['test']}`: {r['reason']}" for r in others)]).strip()


def steps(folder: Path) -> str:
    report = read(folder / "steps.json")
    if report is None:
        return ""
    peak = report["peak_tflops"]
    reached = f"{report['measured_tflops']:.0f} TFLOP/s in a product of large matrices"
    facts = f"{heading(report)}; {reached}{f', {peak:g} by the data sheet' if peak else ''}"
    return "\n\n".join([facts, *(steps_of(name, rows, peak) for name, rows in by_input(report["rows"]).items())])


def steps_of(name: str, rows: list[dict], peak: float | None) -> str:
    full, lora = (next((row for row in rows if row["method"].startswith(name)), {}) for name in (FULL, LORA))
    bare = {"step_seconds": full.get("forward_seconds")}
    columns = ["method", "step, ms", "/ full", "/ LoRA", "/ bare inference", "inference / bare", "FLOP / full"]
    columns += ["FLOP utilization", "peak, GB", "/ LoRA", "largest batch, " + " / ".join(CARDS) + " GB"]
    lines = []
    for row in rows:
        cells = [number(row.get("step_seconds"), 1e3, ".1f")]
        cells += [ratio(row, other, "step_seconds") for other in (full, lora, bare)]
        cells += [ratio(row, full, "forward_seconds"), ratio(row, full, "flops"), utilization(row, peak)]
        cells += [number(peak_of(row).get("peak"), 1e-9, ".1f"), ratio(peak_of(row), peak_of(lora), "peak")]
        largest = row.get("largest_batches") or {}
        cells.append(" / ".join(f"{largest[card]:,}" for card in CARDS) if largest else row.get("error", ""))
        lines.append([row["method"], *cells])
    return table(f"{name}, batch {rows[0]['batch_size']}", columns, lines)


def peak_of(row: dict) -> dict:
    peaks = list((row.get("peak_bytes") or {}).values())
    return {"peak": peaks[-1]} if peaks else {}


def utilization(row: dict, peak: float | None) -> str:
    if not peak or not row.get("step_seconds") or not row.get("flops"):
        return ""
    return f"{row['flops'] / row['step_seconds'] / (peak * 1e12):.0%}"


def compiled(folder: Path) -> str:
    report = read(folder / "compile.json")
    if report is None:
        return ""
    columns = ["method", "as written, ms", "compiled, ms", "compiled / as written", "compiled / full, compiled"]
    columns += ["graph breaks", "loss, compiled - as written", "first step, s"]
    tables = []
    for name, rows in by_input(report["rows"]).items():
        full = next((row for row in rows if row["method"] == FULL), {})
        lines = [[row["method"], *compiled_cells(row, full)] for row in rows]
        tables.append(table(f"{name}, batch {report['batch_size']}, torch.compile", columns, lines))
    return "\n\n".join([heading(report), *tables])


def compiled_cells(row: dict, full: dict) -> list[str]:
    if "compiled_loss" not in row:
        return [row.get("error", "not measured"), *[""] * 6]
    seconds = [row.get(figure) for figure in ("step_seconds", "compiled_step_seconds")]
    cells = [number(value, 1e3, ".1f") for value in seconds]
    cells.append(f"{seconds[1] / seconds[0]:.2f}" if all(seconds) else row.get("error", ""))
    cells.append(ratio(row, full, "compiled_step_seconds"))
    difference = row["compiled_loss"] - row["loss"]
    return [*cells, str(row["graph_breaks"]), f"{difference:.1e}", f"{row['compile_seconds']:.0f}"]


def profile(folder: Path) -> str:
    report = read(folder / "profile.json")
    if report is None:
        return ""
    tables = []
    for row in report["rows"]:
        whole = f"{1e3 * row['kernel_seconds']:.1f} ms in {row['kernels']:,} kernels of a step of "
        title = f"{row['input']}, {row['method']}: {whole}{1e3 * row['step_seconds']:.1f} ms"
        lines = [
            [f"`{top['kernel'][:90].replace('|', '/')}`", str(top["calls"]), f"{1e3 * top['seconds']:.2f}",
             f"{top['seconds'] / row['kernel_seconds']:.1%}"]
            for top in row["top"]
        ]  # fmt: skip
        tables.append(table(title, ["kernel", "calls", "ms", "share"], lines))
    return "\n\n".join([heading(report), *tables])


def heading(report: dict) -> str:
    about = report["environment"]
    versions = f"torch {about['torch']}, transformers {about['transformers']}, PEFT {about['peft']}"
    return f"{about['device']}, {about['dtype']}, batch {report['batch_size']}, {versions}"


def by_input(rows: list[dict]) -> dict[str, list[dict]]:
    return {name: [row for row in rows if row["input"] == name] for name in dict.fromkeys(r["input"] for r in rows)}


def ratio(row: dict, other: dict, figure: str) -> str:
    return f"{row[figure] / other[figure]:.2f}" if row.get(figure) and other.get(figure) else ""


def number(value: float | None, factor: float, form: str) -> str:
    return "" if value is None else format(value * factor, form)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        print(
            f"error: OUT must be the folder that gpu.sh has written, got {' '.join(sys.argv[1:])!r}", file=sys.stderr
        )
        sys.exit(2)
    main(sys.argv[1])

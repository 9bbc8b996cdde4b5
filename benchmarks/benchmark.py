"""Speed and memory of every method, side by side with full fine-tuning, LoRA and prompts in front of whole layers.

    python benchmarks/benchmark.py --output_dir OUT            # everything, about 70 minutes on two cores
    python benchmarks/benchmark.py --output_dir OUT --quick    # bytes only, which are exact, under two minutes
    python benchmarks/benchmark.py --output_dir OUT --device cuda --dtype bfloat16 --batch_size 64 --peak_tflops 989
    python benchmarks/benchmark.py --output_dir OUT --profile "wav2vec2-base, 1 s"

Prints two tables and writes them to OUT/benchmark.json. AST-base and wav2vec2-base have their real size and random
weights. Times are medians of steps that take turns, on one machine in one run: only their ratios mean anything.
"""

import argparse
import json
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import peft
import torch
import transformers
from benchmarking.extras import EXTRAS, on_device, utilization
from benchmarking.measure import (
    Precision,
    checkpoint_bytes,
    flops,
    peak_bytes,
    prediction,
    saved_bytes,
    time_each,
    trainable_parameters,
    training_step,
)
from benchmarking.subjects import (
    AST_1024,
    FULL,
    INPUTS,
    IPET,
    MORE_INPUTS,
    SUBJECTS,
    WAV2VEC2_1,
    Input,
    make_subjects,
)
from benchmarking.targets import EXACT, TARGETS, Outcome, outcomes
from rich.console import Console
from rich.table import Table

import peft_audio
from peft_audio.utils.arguments import check_writable, run_command
from peft_audio.utils.ranges import COUNT, Range


REPEATS, TFLOPS = Range(1, 10_000, whole=True), Range(0, above=True)
BATCH_SIZES = {**INPUTS, **MORE_INPUTS}
SOURCES = {source.name: source for source in BATCH_SIZES}
QUICK = [AST_1024.name, WAV2VEC2_1.name]


def main(arguments: list[str] | None = None) -> dict:
    """Runs the benchmark; returns what it writes."""
    options = parse(arguments)
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated|Could not find a config file in")
    transformers.utils.logging.disable_progress_bar()
    precision = Precision(options.device, getattr(torch, options.dtype))
    if options.profile:
        return profile(SOURCES[options.profile], options, precision)
    report = {"environment": environment(precision, options.dropout), "rows": [], "targets": []}
    for rows, found in run(options, precision):
        report["rows"] += rows
        report["targets"] += [{**vars(outcome), "reached": outcome.is_reached} for outcome in found]
        write_json(options.output_dir / "benchmark.json", report)
    print_tables(report["rows"], report["targets"])
    return report


def write_json(path: Path, content: dict) -> None:
    """Write `content` so that `path` always holds a complete file: what a killed run has measured is not lost."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def run(options: argparse.Namespace, precision: Precision) -> Iterator[tuple[list[dict], list[Outcome]]]:
    """Yields rows of figures, and what is compared, as they are measured."""
    default = QUICK if options.quick else [source.name for source in INPUTS]
    for name in default if options.inputs is None else options.inputs:
        print(f"{name} ...", flush=True)
        rows = measure(SOURCES[name], options, precision)
        by_method = {(name, row["method"]): row for row in rows}
        yield rows, outcomes(EXACT if options.quick else TARGETS, by_method)
    for name in [] if options.quick else options.extras:
        print(f"{name} ...", flush=True)
        yield [], list(EXTRAS[name](precision, options.repeats))
    if options.peak_tflops and not options.quick:
        yield [], list(utilization(precision, options.repeats, options.batch_size or 64, options.peak_tflops * 1e12))


def usable_device(text: str) -> str:
    """A device that torch has here, as a type of argparse."""
    try:
        torch.empty(1, device=text)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"must be a device of this machine, got {text!r} ({reason})") from None
    return text


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--device", type=usable_device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16: by autocast")
    parser.add_argument("--batch_size", type=COUNT, help="of all steps, instead of what two cores have time for")
    parser.add_argument("--repeats", type=REPEATS, default=5)
    parser.add_argument("--inputs", nargs="*", choices=SOURCES, metavar="INPUT")
    parser.add_argument("--methods", nargs="+", choices=SUBJECTS, default=list(SUBJECTS), metavar="METHOD")
    parser.add_argument("--extras", nargs="*", choices=EXTRAS, default=list(EXTRAS), help="further comparisons")
    parser.add_argument("--peak_tflops", type=TFLOPS, help="of the device in this precision, for its utilization")
    parser.add_argument("--no_dropout", dest="dropout", action="store_false", help="in wav2vec2; AST has none")
    parser.add_argument("--quick", action="store_true", help="no times")
    parser.add_argument("--profile", choices=SOURCES, metavar="INPUT", help="show where the time of --methods goes")
    options = parser.parse_args(arguments)
    check_writable("--output_dir", options.output_dir)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    return options


def measure(source: Input, options: argparse.Namespace, precision: Precision) -> list[dict]:
    """The figures of every method on one input, a row each."""
    batch_size = 1 if options.quick else options.batch_size or BATCH_SIZES[source]
    batch = on_device(source.make_batch(batch_size), precision)
    rows, models = [], {}
    for name, model in make_subjects(source, options.methods, options.dropout):
        model.to(precision.device)
        rows.append(
            {
                "input": source.name,
                "method": name,
                "batch_size": batch_size,
                "trainable_parameters": trainable_parameters(model),
                "checkpoint_bytes": checkpoint_bytes(model),
                "saved_bytes": saved_bytes(model, batch, precision),
            }
        )
        if not options.quick:
            models[name] = model
    if models:
        measure_times(models, batch, rows, options.repeats, precision)
    return rows


def measure_times(models: dict, batch: dict, rows: list[dict], repeats: int, precision: Precision) -> None:
    """Adds what a step and a forward pass of each model take to its row."""
    steps = {name: training_step(model, batch, precision) for name, model in models.items()}
    seconds = time_each(steps, repeats, precision)
    for row in rows:
        row["step_seconds"] = seconds[row["method"]]
        row["flops"] = flops(steps[row["method"]])
        row["peak_bytes"] = peak_bytes(steps[row["method"]], precision)
    for model in models.values():
        model.eval()
    predictions = {name: prediction(model, batch, precision) for name, model in models.items()}
    seconds = time_each(predictions, repeats, precision)
    for row in rows:
        row["forward_seconds"] = seconds[row["method"]]


def profile(source: Input, options: argparse.Namespace, precision: Precision) -> dict:
    """Prints the operations that a step of each method spends most time in."""
    names = [IPET] if options.methods == list(SUBJECTS) else options.methods
    batch = on_device(source.make_batch(options.batch_size or BATCH_SIZES[source]), precision)
    time = "self_device_time_total" if precision.device.type == "cuda" else "self_cpu_time_total"
    shares = {}
    for name, model in make_subjects(source, names, options.dropout):
        step = training_step(model.to(precision.device), batch, precision)
        step()
        with torch.profiler.profile() as profiler:
            step()
            precision.wait()
        times = {event.key: getattr(event, time) for event in profiler.key_averages()}
        top = sorted(times, key=times.get, reverse=True)[:12]
        shares[name] = {key: times[key] / sum(times.values()) for key in top}
        print(f"{source.name}, {name}")
        for key, share in shares[name].items():
            print(f"  {share:6.1%}  {key}")
    write_json(options.output_dir / "profile.json", {"input": source.name, "shares": shares})
    return shares


def environment(precision: Precision, dropout: bool) -> dict:
    is_gpu = precision.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name()
        if is_gpu
        else f"{platform.machine()}, {torch.get_num_threads()} threads",
        "dtype": str(precision.dtype).removeprefix("torch."),
        "dropout": dropout,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "peft_audio": peft_audio.__version__,
    }


def print_tables(rows: list[dict], found: list[dict]) -> None:
    console = Console(width=160)
    for source in dict.fromkeys(row["input"] for row in rows):
        here = [row for row in rows if row["input"] == source]
        bare = next((row for row in here if row["method"] == FULL), {})
        table = Table("method", "trainable", *COLUMNS, title=source)
        for row in here:
            cells = [tell(row, bare) for tell in COLUMNS.values()]
            table.add_row(row["method"], f"{row['trainable_parameters']:,}", *cells)
        console.print(table)
    table = Table("figure", "measured", "to reach", "")
    for outcome in found:
        bound = "" if outcome["target"] is None else f"{'>=' if outcome['at_least'] else '<='} {outcome['target']:g}"
        verdict = {True: "reached", False: "missed", None: ""}[outcome["reached"]]
        table.add_row(outcome["name"], f"{outcome['value']:.3g} {outcome['unit']}".strip(), bound, verdict)
    console.print(table)


def ratio(figure: str) -> Callable[[dict, dict], str]:
    return lambda row, bare: f"{row[figure] / bare[figure]:.2f}" if figure in row and figure in bare else ""


def amount(figure: str, unit: float) -> Callable[[dict, dict], str]:
    return lambda row, bare: f"{row[figure] / unit:,.1f}" if row.get(figure) else ""


# Of a table, from the row of a method and that of full fine-tuning.
COLUMNS = {
    "step / full": ratio("step_seconds"),
    "forward / bare": ratio("forward_seconds"),
    "FLOP / full": ratio("flops"),
    "MB saved": amount("saved_bytes", 1e6),
    "peak MB (GPU)": amount("peak_bytes", 1e6),
    "checkpoint KB": amount("checkpoint_bytes", 1e3),
}


if __name__ == "__main__":
    missed = [target["name"] for target in run_command(main).get("targets", ()) if target["reached"] is False]
    sys.exit("Missed: " + "; ".join(missed) if "--quick" in sys.argv and missed else 0)

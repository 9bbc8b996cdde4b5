"""The parts of `gpu.sh`, each of which writes OUT/PART.json as it measures.

    python benchmarks/gpu.py steps --output_dir OUT      # time, use of the GPU and memory of every method
    python benchmarks/gpu.py compile --output_dir OUT    # compiled steps against those as written
    python benchmarks/gpu.py profile --output_dir OUT    # the kernels of a step
    python benchmarks/gpu.py steps --output_dir OUT --tiny    # a try on a CPU, with models of 16 dimensions

The models have their real size and random weights. The arithmetic is bfloat16 by autocast, unless --dtype says otherwise.
"""

import argparse
import time
import warnings
from pathlib import Path

import torch
import transformers
from benchmark import REPEATS, TFLOPS, environment, usable_device, write_json
from benchmarking import compiled, on_gpu, profiles
from benchmarking.extras import on_device
from benchmarking.measure import Precision, training_step
from benchmarking.subjects import FULL, IPET, LORA, SUBJECTS, Input, make_subjects

from peft_audio.utils.arguments import check_writable, run_command
from peft_audio.utils.ranges import COUNT, Range


TOP_KERNELS = 15
TINY_METHODS = [FULL, LORA, IPET]
INPUTS = [source.name for source in (*on_gpu.GPU_INPUTS, *on_gpu.TINY_INPUTS)]
BACKENDS = torch.compiler.list_backends(exclude_tags=())


def main(arguments: list[str] | None = None) -> dict | None:
    options = parse(arguments)
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated|Could not find a config file in")
    transformers.utils.logging.disable_progress_bar()
    precision = Precision(options.device, getattr(torch, options.dtype))
    if options.part == "compile-one":
        ((source, name),) = ((source, name) for source in inputs_of(options) for name in options.methods)
        return compiled.worker(source, name, options.batch_size, precision, options.backend, options.repeats)
    report = {"environment": environment(precision, dropout=True), "batch_size": options.batch_size}
    return PARTS[options.part](options, precision, report)


def steps(options: argparse.Namespace, precision: Precision, report: dict) -> dict:
    size = 64 if options.tiny else 8192
    report["measured_tflops"] = on_gpu.measured_tflops(precision, size)
    report["peak_tflops"] = options.peak_tflops or on_gpu.peak_tflops(report["environment"]["device"])
    report["rows"] = []
    sources = inputs_of(options)
    weights = [on_gpu.GPU_INPUTS.get(source, 1) for source in sources]
    for number, source in enumerate(sources):
        print(f"{source.name} ...", flush=True)
        share = 0 if options.tiny else weights[number] / sum(weights[number:])
        until = time.monotonic() + (options.end - time.monotonic()) * share
        names, done = on_gpu.subjects_of(source, options.methods), list(report["rows"])
        for rows in on_gpu.measure(source, names, options.batch_size, precision, until):
            report["rows"] = done + rows
            save(report, options)
        if precision.device.type == "cuda":
            torch.cuda.empty_cache()
    return report


def compile_steps(options: argparse.Namespace, precision: Precision, report: dict) -> dict:
    names = options.methods or compiled.METHODS
    cases = [(source, name) for name in names for source in inputs_of(options)][: 1 if options.tiny else None]
    passed = ["--output_dir", str(options.output_dir), "--batch_size", str(options.batch_size)]
    passed += ["--device", options.device, "--backend", options.backend, *["--tiny"] * options.tiny]
    passed += ["--dtype", options.dtype, "--repeats", str(options.repeats)]
    # A GPU's host has many cores to compile with.
    at_once = len(cases) if precision.device.type == "cuda" else 1
    for rows in compiled.compare(cases, passed, options.end, at_once):
        report["rows"] = rows
        save(report, options)
    return report


def profile(options: argparse.Namespace, precision: Precision, report: dict) -> dict:
    report["rows"] = []
    for source in inputs_of(options):
        batch = on_device(source.make_batch(options.batch_size), precision)
        # All are made before torch's profiler runs: once, after it had, a model made next was found broken.
        for name, model in list(make_subjects(source, options.methods or [IPET, LORA])):
            step = training_step(model.to(precision.device), batch, precision)
            found = profiles.kernels(step, precision)
            start = time.perf_counter()
            step()
            precision.wait()
            whole = {"step_seconds": time.perf_counter() - start, "kernels": sum(row["calls"] for row in found)}
            whole["kernel_seconds"] = sum(row["seconds"] for row in found)
            row = {"input": source.name, "method": name, **whole, "top": found[:TOP_KERNELS]}
            report["rows"].append(row)
            save(report, options)
    return report


# How many of the inputs, the most important first.
INPUTS_OF_PARTS = {"compile": 2, "profile": 1}
PARTS = {"steps": steps, "compile": compile_steps, "profile": profile}


def save(report: dict, options: argparse.Namespace) -> None:
    write_json(options.output_dir / f"{options.part}.json", report)


def inputs_of(options: argparse.Namespace) -> list[Input]:
    """The inputs of a part, or those that were asked for."""
    known = on_gpu.TINY_INPUTS if options.tiny else list(on_gpu.GPU_INPUTS)
    if options.inputs is not None:
        return [source for source in known if source.name in options.inputs]
    return known[: INPUTS_OF_PARTS.get(options.part)]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=(*PARTS, "compile-one"))
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--device", type=usable_device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="bfloat16: by autocast")
    parser.add_argument("--batch_size", type=COUNT, help="64, and 16 of compiled steps, which several processes take")
    parser.add_argument("--until", type=Range(0), help="when it should be over, in seconds since 1970: `date +%%s`")
    parser.add_argument("--inputs", nargs="*", metavar="INPUT", choices=INPUTS)
    parser.add_argument("--methods", nargs="+", choices=SUBJECTS, metavar="METHOD")
    parser.add_argument("--peak_tflops", type=TFLOPS, help="of the card, where its name is not known here")
    parser.add_argument("--backend", default="inductor", choices=BACKENDS, help="of torch.compile")
    parser.add_argument("--repeats", type=REPEATS, help="of compiled steps: 10, or 2 with --tiny")
    parser.add_argument("--tiny", action="store_true", help="small models, two clips, three methods")
    options = parser.parse_args(arguments)
    check_writable("--output_dir", options.output_dir)
    options.end = time.monotonic() + (600 if options.until is None else options.until - time.time())
    options.output_dir.mkdir(parents=True, exist_ok=True)
    if options.tiny:
        options.methods = options.methods or TINY_METHODS
    options.repeats = options.repeats or (2 if options.tiny else 10)
    if options.batch_size is None:
        options.batch_size = 2 if options.tiny else 16 if options.part == "compile" else 64
    return options


if __name__ == "__main__":
    run_command(main)

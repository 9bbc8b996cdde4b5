"""The memory of a training step on a CPU, as the operating system counts it: the most that the process had at one time.

    python benchmarks/memory.py --output_dir OUT                     # six methods, about ten minutes on two cores
    python benchmarks/memory.py --output_dir OUT --inputs "wav2vec2-base, 3 s" --batch_sizes 1 4

Each method and batch size has a process of its own, which makes the model, and takes two steps of AdamW in float32. Python
and its packages are part of the number (the first row: what they take alone), as they are of what `top` shows. The largest batch
for a machine with 8, 16 or 24 GB lies on a line through both sizes. Writes OUT/memory.json and prints it as Markdown.
"""

import argparse
import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import tables
from benchmark import SOURCES, environment, write_json
from benchmarking.measure import Precision, training_step
from benchmarking.on_gpu import FIRST, largest_batches
from benchmarking.subjects import AST_1024, SUBJECTS

from peft_audio.utils.arguments import check_writable, run_command
from peft_audio.utils.ranges import COUNT


PACKAGES = "Python and its packages"
STEPS = 2  # the first makes the optimizer's state, the second has it


def main(arguments: list[str] | None = None) -> dict:
    """Measures, writes and prints; returns what it writes."""
    options = parse(arguments)
    report = {"environment": environment(Precision(), dropout=True), "rows": []}
    for name in options.inputs:
        for method in (PACKAGES, *options.methods):
            row = {"input": name, "method": method, "peak_bytes": {}}
            for size in options.batch_sizes if method in SUBJECTS else (0,):
                row["peak_bytes"][str(size)] = in_a_process(name, method, size)
            row["largest_batches"] = largest_batches(row["peak_bytes"])
            report["rows"].append(row)
            write_json(options.output_dir / "memory.json", report)
            print(f"{name}, {method}: {', '.join(f'{peak / 1e9:.2f} GB' for peak in row['peak_bytes'].values())}")
    print(tables.memory(options.output_dir))
    return report


def in_a_process(name: str, method: str, batch_size: int) -> int:
    """`peak_of_steps` in a new process, whose memory has nothing of this one's."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(peak_of_steps, name, method, batch_size).result()


def peak_of_steps(name: str, method: str, batch_size: int) -> int:
    """The most bytes that were resident in this process by the end of some training steps."""
    if method in SUBJECTS:
        source = SOURCES[name]
        model = SUBJECTS[method](source.make_model()).train()
        step = training_step(model, source.make_batch(batch_size), Precision())
        for _ in range(STEPS):
            step()
    return highest_resident_bytes()


def highest_resident_bytes() -> int:
    """The most memory that this process has had. Linux's `ru_maxrss` would count that of its parent at the start too."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024  # "VmHWM:  1234 kB"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts in bytes


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--inputs", nargs="+", choices=SOURCES, default=[AST_1024.name], metavar="INPUT")
    parser.add_argument("--methods", nargs="+", choices=SUBJECTS, default=FIRST, metavar="METHOD")
    parser.add_argument(
        "--batch_sizes", nargs=2, type=COUNT, default=[1, 4], metavar="N", help="two, the smaller first"
    )
    options = parser.parse_args(arguments)
    if options.batch_sizes[0] >= options.batch_sizes[1]:
        parser.error(f"argument --batch_sizes: the first must be below the second, got {options.batch_sizes}")
    check_writable("--output_dir", options.output_dir)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    run_command(main)

"""Runs rows of the papers' tables, and prints what was measured beside what the paper reports.

    python method_comparison/run_recipe.py ipet/ast-esc50 --data_dir ESC-50-master
    python method_comparison/run_recipe.py "aat/ast-esc50*" --data_dir ESC-50-master    # every row of that name
    python method_comparison/run_recipe.py loaa/image-esc50 --dry_run                   # what would run; needs no data
    python method_comparison/run_recipe.py --list

Recipes are the rows of the tables in `method_comparison/recipes/`, one YAML file a paper; `--set epochs=5` changes a
setting. Every training leaves its adapter, its metrics after every epoch and its predictions in a folder below
`--output_dir`; started again, the command goes on where it was interrupted.
"""

import argparse
import dataclasses
import logging
from pathlib import Path

import examples_path  # noqa: F401
import yaml
from data_sets import DATA_SETS
from experiments.backbones import BACKBONES, BackboneError, published_size
from experiments.parts import parts_of
from experiments.recipe import Recipe, RecipeError, load_recipe, matching, recipe_names
from experiments.recipe_checks import check_recipe, told
from experiments.report import RULES, summarize
from experiments.runs import Setting, run
from experiments.trainer import DivergedError
from files import write_json
from rich.console import Console
from rich.table import Table

from peft_audio.data import BadAudioError, DataError
from peft_audio.trainer import check_model_folder
from peft_audio.utils.arguments import UsageError, check_distinct, check_folder, check_writable, run_command
from peft_audio.utils.ranges import SEED, Range


ERRORS = (BackboneError, BadAudioError, DataError, DivergedError, OSError, UsageError)
WORKERS = Range(0, 1024, whole=True)
TITLES = {"accuracy": "accuracy", "map": "mAP", "equal_error_rate": "EER", "min_dcf": "minDCF"}
PERCENT = ("accuracy", "equal_error_rate")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", help="names as --list prints them, * stands for anything")
    parser.add_argument("--list", action="store_true", help="print the names of all recipes")
    parser.add_argument("--dry_run", action="store_true", help="print what would run, and the trainable parameters")
    parser.add_argument("--data_dir", type=Path, help="the data set, unpacked as it is published")
    parser.add_argument("--model_name_or_path", help="the pretrained model, if not the published one")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/recipes"))
    parser.add_argument("--cache_dir", type=Path, help="decoded clips and features; below --output_dir if left out")
    parser.add_argument("--musan_dir", type=Path, help="the MUSAN corpus, for recipes with its noise")
    parser.add_argument("--folds", nargs="+", help="run these folds only")
    parser.add_argument("--seeds", nargs="+", type=SEED, default=[0], help="repeat every training with these seeds")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="change settings of the recipe")
    parser.add_argument("--skip_bad_files", action="store_true", help="leave unusable audio files out")
    parser.add_argument("--bf16", action="store_true", help="train in mixed precision")
    parser.add_argument("--use_cpu", action="store_true", help="train on the CPU even if there is a GPU")
    parser.add_argument("--num_workers", type=WORKERS, default=0, help="processes that prepare the batches")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict:
    """Run what the command line (or `arguments`) says. Returns the summaries by recipe."""
    args = parse_arguments(arguments)
    console = Console()
    if args.list:
        console.print("\n".join(recipe_names()), highlight=False)
        return {}
    recipes = [load_recipe(name, changes(args.set)) for name in matching(args.recipes)]
    if not recipes:
        raise RecipeError("Name a recipe; `--list` shows all of them.")
    check_paths(args)
    check_distinct("--seeds", args.seeds)
    check_distinct("--folds", args.folds or [])
    for recipe in recipes:
        check_recipe(recipe)
        check_folds(recipe, args.folds or [])
    if args.dry_run:
        return {recipe.name: show(recipe, args, console) for recipe in recipes}
    if args.data_dir is None:
        raise RecipeError("--data_dir is missing: the folder of the data set, unpacked as it is published.")
    return {recipe.name: measure(recipe, args, console) for recipe in recipes}


def check_paths(args: argparse.Namespace) -> None:
    for name, folder in (("--data_dir", args.data_dir), ("--musan_dir", args.musan_dir)):
        if folder is not None:
            check_folder(name, folder)
    check_writable("--output_dir", args.output_dir)
    check_writable("--cache_dir", args.cache_dir or args.output_dir)
    if args.model_name_or_path is not None:
        check_model_folder("--model_name_or_path", args.model_name_or_path)


def check_folds(recipe: Recipe, folds: list[str]) -> None:
    known = DATA_SETS[recipe.data_set].fold_names(recipe.data_options)
    unknown = [] if known is None else sorted(set(folds) - set(known))
    if unknown:
        names = ", ".join(known) or "none"
        raise RecipeError(f"{recipe.name}: --folds: there is no fold {', '.join(unknown)}; the folds: {names}.")


def changes(settings: list[str]) -> dict[str, object]:
    """The settings of `--set`, whose values are YAML."""
    for setting in settings:
        if "=" not in setting:
            raise RecipeError(f"--set {setting}: must be FIELD=VALUE, e.g. epochs=5.")
    try:
        return {name: yaml.safe_load(value) for name, _, value in (setting.partition("=") for setting in settings)}
    except yaml.YAMLError as error:
        raise RecipeError(f"--set: a value is no YAML ({' '.join(str(error).split())}).") from None


def show(recipe: Recipe, args: argparse.Namespace, console: Console) -> dict[str, int]:
    """Print what a recipe would run, and return how much trains. Needs neither data nor weights."""
    data_set = DATA_SETS[recipe.data_set]
    num_labels = data_set.num_labels or count_labels(recipe, args.data_dir)
    with told(recipe, "options"):
        counts = published_size(recipe, num_labels)
    parts = number_of_parts(recipe, args)
    table = Table(title=f"{recipe.name} ({recipe.source})", show_header=False, title_justify="left")
    rows = {
        "model": f"{BACKBONES[recipe.backbone].title}: {args.model_name_or_path or BACKBONES[recipe.backbone].default}",
        "data": f"{data_set.title}: {data_set.facts}",
        "trainings": f"{parts * len(args.seeds)} ({parts} parts, {len(args.seeds)} seeds) of {recipe.epochs} epochs",
        "trainable parameters": f"{counts['trainable_parameters']:,} of {counts['total_parameters']:,}",
        "the paper reports": "; ".join(
            f"{TITLES[name]} {shown(name, value)}" for name, value in recipe.reported.items()
        ),
    }
    shown_above = ("name", "source", "reported", "notes", "backbone", "data_set", "epochs")
    rows |= {name: value for name, value in dataclasses.asdict(recipe).items() if name not in shown_above}
    for name, value in rows.items():
        if value not in (None, "", False) and value != {} and value != 0.0:
            table.add_row(name, str(value))
    for note in recipe.notes:
        table.add_row("note", note)
    console.print(table)
    return counts


def number_of_parts(recipe: Recipe, args: argparse.Namespace) -> int:
    known = DATA_SETS[recipe.data_set].fold_names(recipe.data_options)
    if known is None:
        return len(parts_of(recipe, args.data_dir, folds=args.folds))
    return len(args.folds or known) or 1


def count_labels(recipe: Recipe, data_dir: Path | None) -> int:
    if data_dir is None:
        raise RecipeError(f"{recipe.name}: --data_dir is missing, whose labels decide the size of the head.")
    part, *_ = parts_of(recipe, data_dir)
    return len(part.splits.labels)


def measure(recipe: Recipe, args: argparse.Namespace, console: Console) -> dict:
    """Train and test a recipe, print its table, write it to summary.json, and return it."""
    setting = Setting(
        output_dir=args.output_dir,
        cache_dir=args.cache_dir or args.output_dir / "cache",
        model_name_or_path=args.model_name_or_path,
        musan_dir=args.musan_dir,
        skip_bad_files=args.skip_bad_files,
        trainer={
            "bf16": args.bf16,
            "use_cpu": args.use_cpu,
            "dataloader_num_workers": args.num_workers,
            "disable_tqdm": not console.is_terminal,
        },
    )
    results: dict[int, dict[str, dict]] = {}
    for seed in args.seeds:
        parts = parts_of(recipe, args.data_dir, seed, args.folds)
        results[seed] = {part.name: run(recipe, part, seed, setting) for part in parts}
    any_run = next(iter(results[args.seeds[0]].values()))
    summary = {
        "method": recipe.method,
        "reported": dict(recipe.reported),
        "measured": summarize(recipe, results),
        "trainable_parameters": any_run["trainable_parameters"],
        "total_parameters": any_run["total_parameters"],
        "adapter_bytes": any_run["adapter_bytes"],
        "parts": list(results[args.seeds[0]]),
        "seeds": args.seeds,
    }
    write_json(args.output_dir / recipe.name / "summary.json", summary)
    console.print(table_of(recipe, summary))
    return summary


def table_of(recipe: Recipe, summary: dict) -> Table:
    """What was measured by every rule, beside what the paper reports."""
    table = Table(
        title=f"{recipe.name}: {summary['trainable_parameters']:,} trainable parameters, {len(summary['parts'])} "
        f"parts, {len(summary['seeds'])} seeds",
        title_justify="left",
    )
    for column in ("metric", "rule", "measured", "± over folds", "± over seeds", "paper"):
        table.add_column(column)
    for metric, rules in summary["measured"].items():
        reported = recipe.reported.get(metric)
        for rule, values in rules.items():
            is_the_papers = rule == RULES[recipe.rule]
            table.add_row(
                TITLES[metric],
                rule,
                shown(metric, values["mean"]),
                *(shown(metric, values[name]) for name in ("std_over_folds", "std_over_seeds")),
                shown(metric, reported) if is_the_papers else "",
            )
    return table


def shown(metric: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.2f} %" if metric in PERCENT else f"{value:.3f}"


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s")
    run_command(main, ERRORS)

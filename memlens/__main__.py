"""The command line: ``memlens audit``, ``train``, ``reproduce``, ``cache`` and two tables."""

import argparse
import ast
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code.

    0; 1: a notebook failed, a page is out of date, finished work is damaged; 2: wrong use;
    130: stopped by hand.
    """
    options = build_parser().parse_args(arguments)
    try:
        return options.run(options)
    except BrokenPipeError:  # `memlens catalogue | head`: the reader has seen enough
        sys.stdout = None
        return 0
    except (ValueError, OSError, MemoryError, FloatingPointError, ImportError) as error:
        print(f"memlens: error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "out of memory" not in str(error):  # of a GPU: torch has no class for all of them
            raise
        print(f"memlens: error: {error}; pass a smaller --size", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nmemlens: stopped; the same call goes on from here", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The parser; it loads nothing heavy, so that ``--help`` is quick."""
    parser = argparse.ArgumentParser(prog="memlens", description="See what a network memorizes.")
    commands = parser.add_subparsers(required=True, metavar="command")
    add_audit(commands)
    add_train(commands)
    job = commands.add_parser("reproduce", help="run the notebooks: every figure, every claim")
    job.set_defaults(run=run_reproduce)
    job.add_argument("--profile", default="digits", help="data set, net, configs (digits)")
    job.add_argument(
        "--scale", type=float, metavar="SHARE",
        help="a first look: this share of the epochs and nets",
    )  # fmt: skip
    job.add_argument("--samples", type=int, metavar="N", help="only so many training samples")
    job.add_argument("--only", nargs="+", default=(), metavar="NN", help="only these notebooks")
    job.add_argument("--fresh", action="store_true", help="empty the cache of runs first")
    job.add_argument("--save", action="store_true", help="store the outputs in the notebooks")
    job.add_argument(
        "-p", dest="parameters", action="append", default=[], type=parse_parameter,
        metavar="NAME=VALUE", help="another notebook parameter; may be repeated",
    )  # fmt: skip
    job.add_argument("--jobs", type=int, metavar="N", help="trainings side by side (one a core)")
    job.add_argument(
        "--scheduler", metavar="ADDRESS",
        help="a Dask scheduler, tcp://host:port, whose workers train (memlens[cluster])",
    )  # fmt: skip
    book = commands.add_parser("claims", help="the ledger: every claim, measured, with a verdict")
    book.set_defaults(run=run_claims)
    book.add_argument("--profile", default="digits", help="whose claims (digits)")
    book.add_argument("--page", type=Path, metavar="PATH",
                      help="write them into this page, or check it (CLAIMS.md)")  # fmt: skip
    what = book.add_mutually_exclusive_group()
    what.add_argument("--write", action="store_true", help="write them into the page")
    what.add_argument("--check", action="store_true", help="write nothing; 1 if the page is stale")
    table = commands.add_parser("catalogue", help="every score: formula, direction, cost, source")
    table.set_defaults(run=run_catalogue)
    add_cache(commands)
    return parser


def add_audit(commands: Any) -> None:
    """Add the parser of ``memlens audit``."""
    own = commands.add_parser(
        "audit", help="your own images: wrong labels, duplicates, what is memorized",
        description="Train on labelled images of your own and say of each what its scores suggest.",
    )  # fmt: skip
    own.set_defaults(run=run_audit)
    own.add_argument(
        "path", metavar="PATH",
        help="a folder of class folders, a .csv of files and labels, or an .npz with x and y",
    )  # fmt: skip
    own.add_argument("--out", type=Path, default=Path("memlens-scores"), metavar="FOLDER",
                     help="where the results go (memlens-scores)")  # fmt: skip
    own.add_argument(
        "--calibrate", action="store_true",
        help="measure how often suggestions are right, on planted flips; twice the time",
    )  # fmt: skip
    own.add_argument("--yes", action="store_true", help="do not ask before work of hours")
    own.add_argument("--size", type=int, metavar="PIXELS", help="side of the squares to train on")
    own.add_argument("--classes", type=Path, metavar="FILE",
                     help="the known classes, one a line; other labels are left out")  # fmt: skip
    own.add_argument("--model", help="a net by name (memlens chooses by device)")
    own.add_argument("--epochs", type=int, metavar="N", help="at most so many a training")
    own.add_argument("--device", default="auto", help="cpu, cuda or cuda:1 (auto)")
    own.add_argument("--seed", type=int, default=0)


def add_train(commands: Any) -> None:
    """The parser of ``memlens train``."""
    one = commands.add_parser(
        "train", help="one training with its scores, on one device or, by torchrun, on many",
        description="Train one net by a profile's config and score every sample. Under `torchrun "
        "--nproc-per-node N -m memlens train ...` N processes train it, one a device.",
    )  # fmt: skip
    one.set_defaults(run=run_train)
    one.add_argument("--profile", default="digits", help="data set, net, config (digits)")
    one.add_argument("--data", metavar="NAME", help="another image set than the profile's")
    one.add_argument("--root", type=Path, metavar="DIR",
                     help="a folder of images: train/<class>/ and val/<class>/")  # fmt: skip
    one.add_argument("--size", type=int, metavar="PIXELS", help="side of a folder's images (224)")
    one.add_argument("--samples", type=int, metavar="N", help="only so many training samples")
    one.add_argument("--model", help="another net by name")
    one.add_argument("--epochs", type=int, metavar="N")
    one.add_argument(
        "--batch-size", type=int, metavar="N",
        help="samples in a step of all devices together; without --lr the rate goes along",
    )  # fmt: skip
    one.add_argument("--lr", type=float, metavar="RATE")
    one.add_argument("--device", help="cpu, cuda or auto (as the profile says)")
    one.add_argument("--stop", metavar="PEAK", help="stop at the peak: weight_norm, input_gradient")
    one.add_argument("--seed", type=int)
    one.add_argument("--measure", action="store_true",
                     help="after each epoch, too, as the notebooks do; on one device")  # fmt: skip
    one.add_argument("--own-statistics", action="store_true",
                     help="let each CPU process have its own batch norm")  # fmt: skip
    one.add_argument("--out", type=Path, metavar="FOLDER", help="also scores.csv, history.csv here")


def add_cache(commands: Any) -> None:
    """The parser of ``memlens cache``."""
    cache = commands.add_parser("cache", help="finished and unfinished work: list, verify, clear")
    cache.set_defaults(run=run_cache)
    cache.add_argument("action", nargs="?", choices=("list", "verify", "clear"), default="list",
                       help="list (what, size, age, cost), check each byte, or remove")  # fmt: skip
    cache.add_argument("--folder", type=Path, help="another: the --out of `memlens audit`, say")
    cache.add_argument("--by", choices=("age", "size"), default="age",
                       help="list the newest or the largest first (age)")  # fmt: skip
    cache.add_argument("--older-than", type=float, metavar="DAYS", help="only what is older")
    cache.add_argument(
        "--kind", help="only such: run, sweep, folds, checkpoint, part, damaged, ..."
    )
    cache.add_argument("--yes", action="store_true", help="do not ask before removing")


def parse_parameter(text: str) -> tuple[str, Any]:
    """``"seeds=3"`` as ``("seeds", 3)``; what is no Python literal stays text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, found {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return name, value


def run_audit(options: argparse.Namespace) -> int:
    """Score images of one's own; 1 if the work was not confirmed."""
    # Before torch: on a machine that does other things, too, threads that wait by spinning make
    # each other many times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from memlens.audit.outputs import audit_path

    classes = None
    if options.classes:
        lines = options.classes.read_text(encoding="utf-8-sig").splitlines()
        classes = [line.strip() for line in lines if line.strip()]
    settings = {name: getattr(options, name)
                for name in ("size", "model", "epochs", "device", "seed", "calibrate")}  # fmt: skip
    scored = audit_path(
        options.path, options.out, classes=classes, **settings,
        confirm=lambda told: options.yes or ask(told),
        log=lambda text: print(text, flush=True),
    )  # fmt: skip
    return int(scored is None)


def run_train(options: argparse.Namespace) -> int:
    """Train one net, or this process's share of it."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in `run_audit`
    from memlens.experiments import launch

    changes = {name: getattr(options, name)
               for name in ("epochs", "batch_size", "lr", "device", "stop", "seed")}  # fmt: skip
    job = launch.make_job(
        options.profile, data=options.data, root=options.root, size=options.size,
        n_samples=options.samples, model=options.model, measured=options.measure, **changes,
    )  # fmt: skip
    run = launch.train_here(job, own_statistics=options.own_statistics)
    if run is not None:
        print(run, flush=True)
        if options.out:
            launch.write(run, options.out)
    return 0


def ask(told: str) -> bool:
    """Whether a person says yes; where none can answer, an error says how to."""
    return confirmed(told, "Start", "start it, or --epochs, --size, --device for less")


def confirmed(told: str, do: str, ways: str) -> bool:
    """Whether a person answers yes; where none can, an error says what to pass."""
    if not sys.stdin.isatty():
        raise ValueError(f"{told} Pass --yes to {ways}")
    try:
        return input(f"{told} {do}? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def run_reproduce(options: argparse.Namespace) -> int:
    """Run the notebooks; 1 if any failed."""
    try:
        from memlens.experiments.reproduce import reproduce
    except ModuleNotFoundError as error:
        raise ImportError(
            f"notebooks need {error.name}: pip install 'memlens[notebooks,confident]'"
        ) from error

    asked = {"scale": options.scale, "n_samples": options.samples}
    asked = {name: value for name, value in asked.items() if value is not None}
    parameters = asked | dict(options.parameters)
    with asked_of(options):
        report = reproduce(options.profile, options.only, options.fresh, options.save, parameters)
    return int((report["failure"] != "").any())


def asked_of(options: argparse.Namespace) -> AbstractContextManager:
    """Where trainings are mapped as the options ask, in the notebooks' kernels, too."""
    if options.jobs is None and options.scheduler is None:
        return nullcontext()
    from memlens.training.parallel import (
        parallel_settings,  # loads torch, which only the kernels need else
    )

    return parallel_settings(n_jobs=options.jobs, scheduler=options.scheduler)


def run_claims(options: argparse.Namespace) -> int:
    """Print how the claims fare; write the ledger into a page, or check the page's copy of it."""
    from memlens.experiments import claims
    from memlens.storage import store

    print(claims.summary(claims.ledger(options.profile)), flush=True)
    page = options.page or store.root() / claims.PAGE
    if options.check:
        current = claims.is_current(page, options.profile)
        call = f"memlens claims --profile {options.profile} --page {page}"
        print(f"\n{page}: " + ("up to date" if current else f"out of date; run `{call}`"))
        return int(not current)
    if options.write or options.page:
        changed = claims.update_page(page, options.profile)
        print(f"\n{page}: " + ("written" if changed else "up to date"))
    return 0


def run_catalogue(options: argparse.Namespace) -> int:
    """Print the catalogue of scores."""
    from memlens.ensembles.costs import catalogue

    print(catalogue().to_string(max_colwidth=60), flush=True)
    return 0


def run_cache(options: argparse.Namespace) -> int:
    """List, verify or clear finished work; 1 if some is damaged, or its removal not confirmed."""
    from memlens.storage import inventory

    folder = inventory.cache_of(options.folder)
    entries = inventory.chosen(inventory.entries(folder), options.kind, options.older_than)
    if options.action == "verify":
        problems = inventory.verify(entries)
        print("\n".join([*problems, f"{len(entries)} looked at, {len(problems)} damaged"]))
        return int(bool(problems))
    print(f"{folder}\n{inventory.table(entries, options.by)}", flush=True)
    if options.action == "list" or not entries:
        return 0
    told = f"This removes {inventory.total(entries)}."
    if not options.yes and not confirmed(told, "Remove", "remove it, or --kind, --older-than"):
        return 1
    removed, busy = inventory.clear(entries)
    print(f"removed {inventory.total(removed)}")
    if busy:
        print("left, for a process is at work on it: " + ", ".join(e.name for e in busy))
    return 0


if __name__ == "__main__":
    sys.exit(main())

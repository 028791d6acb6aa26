"""The command line.

``audit``, ``train``, ``truth``, ``reproduce``, ``claims``, ``catalogue`` and ``cache``.
"""

import argparse
import ast
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

PROFILE = "fashion_small"  # the default of every command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code.

    0: success. 1: a notebook failed, CLAIMS.md is out of date, cached work is damaged, or the user
    declined. 2: wrong use. 130: interrupted.
    """
    options = build_parser().parse_args(arguments)
    try:
        return options.run(options)
    except BrokenPipeError:  # `memlens catalogue | head`: the reader has closed the pipe
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
        print("\nmemlens: stopped; run the same command again to resume", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """Build the parser without heavy imports, so that ``--help`` is fast."""
    parser = argparse.ArgumentParser(prog="memlens", description="See what a network memorizes.")
    commands = parser.add_subparsers(required=True, metavar="command")
    add_audit(commands)
    add_train(commands)
    add_truth(commands)
    add_reproduce(commands)
    add_claims(commands)
    catalogue = commands.add_parser(
        "catalogue", help="list every score: formula, direction, cost, source"
    )
    catalogue.set_defaults(run=run_catalogue)
    add_cache(commands)
    return parser


def add_audit(commands: Any) -> None:
    """Add the parser of ``memlens audit``."""
    audit = commands.add_parser(
        "audit", help="find wrong labels, duplicates and memorized samples in your own images",
        description="Train on your own labelled images, score each image, and report suspected "
        "wrong labels, duplicates and memorized samples.",
    )  # fmt: skip
    audit.set_defaults(run=run_audit_command)
    audit.add_argument(
        "path", metavar="PATH",
        help="a folder of class folders, a .csv of files and labels, or an .npz with x and y",
    )  # fmt: skip
    audit.add_argument("--out", type=Path, default=Path("memlens-scores"), metavar="FOLDER",
                       help="folder of the results (default: memlens-scores)")  # fmt: skip
    audit.add_argument(
        "--calibrate", action="store_true",
        help="measure the precision of the suggestions on planted label flips; doubles the time",
    )  # fmt: skip
    audit.add_argument(
        "--yes", action="store_true", help="start work of more than an hour without confirmation"
    )
    audit.add_argument(
        "--size",
        type=int,
        metavar="PIXELS",
        help="side of the square images to train on (default: up to 64)",
    )
    audit.add_argument("--classes", type=Path, metavar="FILE",
                       help="the classes, one per line; other labels are left out")  # fmt: skip
    audit.add_argument("--model", help="a network by name (default: chosen by device)")
    audit.add_argument("--epochs", type=int, metavar="N", help="maximum epochs of each training")
    audit.add_argument("--device", default="auto",
                       help="cpu, cuda, cuda:1 or auto (default): a GPU if any")  # fmt: skip
    audit.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")


def add_train(commands: Any) -> None:
    """Add the parser of ``memlens train``."""
    train = commands.add_parser(
        "train", help="train one network and score every sample, on one device or several",
        description="Train one network with a profile's config and score every sample. Under "
        "`torchrun --nproc-per-node N -m memlens train ...`, N processes train it, one per device.",
    )  # fmt: skip
    train.set_defaults(run=run_train)
    train.add_argument(
        "--profile", default=PROFILE, help="data set, network and config (default: %(default)s)"
    )
    train.add_argument("--data", metavar="NAME", help="an image set other than the profile's")
    train.add_argument("--root", type=Path, metavar="DIR",
                       help="a folder of images: train/<class>/ and val/<class>/")  # fmt: skip
    train.add_argument(
        "--size", type=int, metavar="PIXELS", help="side of a folder's images (default: 224)"
    )
    train.add_argument(
        "--samples", type=int, metavar="N", help="number of training samples (default: all)"
    )
    train.add_argument("--model", help="a network other than the profile's, by name")
    train.add_argument("--epochs", type=int, metavar="N")
    train.add_argument(
        "--batch-size", type=int, metavar="N",
        help="samples per step over all devices; without --lr the learning rate scales with it",
    )  # fmt: skip
    train.add_argument("--lr", type=float, metavar="RATE", help="learning rate")
    train.add_argument("--device", help="cpu, cuda or auto (default: the profile's)")
    train.add_argument(
        "--stop",
        metavar="STOP",
        help="end when it is detected: input_gradient, weight_norm, label_wave or best_val",
    )
    train.add_argument("--seed", type=int)
    train.add_argument("--measure", action="store_true",
                       help="also record the post-hoc signals; on one device only")  # fmt: skip
    train.add_argument("--own-statistics", action="store_true",
                       help="separate batch norm statistics in each CPU process")  # fmt: skip
    train.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write scores.csv and history.csv to this folder"
    )


def add_truth(commands: Any) -> None:
    """Add the parser of ``memlens truth``."""
    truth = commands.add_parser(
        "truth", help="compute the memorization that the package ships, from thousands of networks",
        description="Train networks on random subsets with a profile's config, compute each "
        "sample's memorization (Feldman and Zhang), and validate it by leaving out single samples. "
        "It says how long it will take; an interrupted call resumes.",
    )  # fmt: skip
    truth.set_defaults(run=run_truth)
    truth.add_argument("--profile", default=PROFILE,
                       help="data set, network and config (default: %(default)s)")  # fmt: skip
    truth.add_argument(
        "--networks", type=int, default=2_000, metavar="N", help="networks (default: 2000)"
    )
    truth.add_argument("--jobs", type=int, metavar="N", help="processes (default: one per core)")
    truth.add_argument("--out", type=Path, metavar="FOLDER",
                       help="folder of the two files (default: the package)")  # fmt: skip
    truth.add_argument("--yes", action="store_true", help="start without confirmation")


def add_reproduce(commands: Any) -> None:
    """Add the parser of ``memlens reproduce``."""
    reproduce = commands.add_parser("reproduce", help="run the notebooks: all figures and claims")
    reproduce.set_defaults(run=run_reproduce)
    reproduce.add_argument(
        "--profile", default=PROFILE, help="data set, networks and configs (default: %(default)s)"
    )
    reproduce.add_argument(
        "--scale", type=float, metavar="SHARE",
        help="a first look with this share of the epochs and networks",
    )  # fmt: skip
    reproduce.add_argument(
        "--samples", type=int, metavar="N", help="number of training samples (default: all)"
    )
    reproduce.add_argument(
        "--only", nargs="+", default=(), metavar="NN", help="only these notebooks, such as 02 04"
    )
    reproduce.add_argument("--fresh", action="store_true", help="empty the cache first")
    reproduce.add_argument("--save", action="store_true", help="store the outputs in the notebooks")
    reproduce.add_argument(
        "-p", dest="parameters", action="append", default=[], type=parse_parameter,
        metavar="NAME=VALUE", help="set another notebook parameter; may be repeated",
    )  # fmt: skip
    reproduce.add_argument(
        "--jobs", type=int, metavar="N", help="parallel trainings (default: one per core)"
    )
    reproduce.add_argument(
        "--scheduler", metavar="ADDRESS",
        help="train on the workers of a Dask scheduler, tcp://host:port (memlens[cluster])",
    )  # fmt: skip


def add_claims(commands: Any) -> None:
    """Add the parser of ``memlens claims``."""
    claims = commands.add_parser(
        "claims", help="count the papers' claims by verdict; write CLAIMS.md"
    )
    claims.set_defaults(run=run_claims)
    claims.add_argument("--profile", default=PROFILE,
                        help="profile of the runs (default: %(default)s)")  # fmt: skip
    claims.add_argument("--file", type=Path, metavar="PATH",
                        help="file to write, or to compare with --check (CLAIMS.md)")  # fmt: skip
    action = claims.add_mutually_exclusive_group()
    action.add_argument("--write", action="store_true", help="write the file; implied by --file")
    action.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 if the file is out of date"
    )


def add_cache(commands: Any) -> None:
    """Add the parser of ``memlens cache``."""
    cache = commands.add_parser("cache", help="list, verify or clear cached work")
    cache.set_defaults(run=run_cache)
    cache.add_argument("action", nargs="?", choices=("list", "verify", "clear"), default="list",
                       help="list entries with age and cost; verify or remove them")  # fmt: skip
    cache.add_argument(
        "--folder", type=Path, help="another cache, for example the --out of `memlens audit`"
    )
    cache.add_argument("--by", choices=("age", "size"), default="age",
                       help="list the newest or the largest first (default: age)")  # fmt: skip
    cache.add_argument(
        "--older-than", type=float, metavar="DAYS", help="only entries older than this"
    )
    cache.add_argument(
        "--kind", help="only this kind: run, sweep, folds, checkpoint, part, damaged, ..."
    )
    cache.add_argument("--yes", action="store_true", help="clear without confirmation")


def parse_parameter(text: str) -> tuple[str, Any]:
    """Parse ``"seeds=3"`` to ``("seeds", 3)``; a value that is not a Python literal is text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, found {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return name, value


def run_audit_command(options: argparse.Namespace) -> int:
    """Audit the user's images; 1 if the user declined the work."""
    # Before torch is imported: idle threads that spin slow down other processes many times over.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from memlens.audit.outputs import audit_path

    classes = None
    if options.classes:
        lines = options.classes.read_text(encoding="utf-8-sig").splitlines()
        classes = [line.strip() for line in lines if line.strip()]
    settings = {name: getattr(options, name)
                for name in ("size", "model", "epochs", "device", "seed", "calibrate")}  # fmt: skip
    result = audit_path(
        options.path, options.out, classes=classes, **settings,
        confirm=lambda message: options.yes or confirm_start(message),
        log=lambda text: print(text, flush=True),
    )  # fmt: skip
    return int(result is None)


def run_train(options: argparse.Namespace) -> int:
    """Train one network, or this process's share of it."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in `run_audit_command`
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
            launch.write_tables(run, options.out)
    return 0


def run_truth(options: argparse.Namespace) -> int:
    """Compute memorization and write it; 1 if the user declined the work."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in `run_audit`
    from memlens.ensembles import truth
    from memlens.experiments.profiles import get_profile

    profile = get_profile(options.profile)
    paths = truth.write_truth(
        profile.sweep_model or profile.model, profile.load(), profile.sweep_config,
        options.out or truth.FOLDER,
        keep=profile.keep, n_models=options.networks, n_jobs=options.jobs,
        confirm=lambda message: options.yes or confirmed(message, "Start", "start it"),
        log=lambda text: print(text, flush=True),
    )  # fmt: skip
    return int(not paths)


def confirm_start(message: str) -> bool:
    """Ask the user to confirm long work."""
    return confirmed(message, "Start", "start it, or --epochs, --size, --device for less")


def confirmed(message: str, action: str, advice: str) -> bool:
    """Ask the user to confirm an action; without a terminal, raise an error with the advice."""
    if not sys.stdin.isatty():
        raise ValueError(f"{message} Pass --yes to {advice}")
    try:
        return input(f"{message} {action}? [y/N] ").strip().lower() in ("y", "yes")
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

    size = {"scale": options.scale, "n_samples": options.samples}
    size = {name: value for name, value in size.items() if value is not None}
    parameters = size | dict(options.parameters)
    with parallel_options(options):
        table = reproduce(options.profile, options.only, options.fresh, options.save, parameters)
    return int((table["failure"] != "").any())


def parallel_options(options: argparse.Namespace) -> AbstractContextManager:
    """Apply ``--jobs`` and ``--scheduler``, also in the notebooks' kernels."""
    if options.jobs is None and options.scheduler is None:
        return nullcontext()  # torch, which the next import loads, is needed in the kernels only
    from memlens.training.jobs import parallel_settings

    return parallel_settings(n_jobs=options.jobs, scheduler=options.scheduler)


def run_claims(options: argparse.Namespace) -> int:
    """Print the counts of the claims; write the claims to a file, or check it."""
    from memlens.experiments import claims_file as claims
    from memlens.storage import store

    print(claims.summary(claims.claims_table(options.profile)), flush=True)
    file = options.file or store.root() / claims.CLAIMS_FILE
    if options.check:
        current = claims.is_current(file, options.profile)
        command = f"memlens claims --profile {options.profile} --file {file}"
        print(f"\n{file}: " + ("up to date" if current else f"out of date; run `{command}`"))
        return int(not current)
    if options.write or options.file:
        changed = claims.write_claims(file, options.profile)
        print(f"\n{file}: " + ("written" if changed else "up to date"))
    return 0


def run_catalogue(options: argparse.Namespace) -> int:
    """Print the catalogue of scores."""
    from memlens.ensembles.costs import catalogue

    print(catalogue().to_string(max_colwidth=60), flush=True)
    return 0


def run_cache(options: argparse.Namespace) -> int:
    """List, verify or clear cached work; 1 if some is damaged, or the user declined."""
    from memlens.storage import inventory

    folder = inventory.cache_of(options.folder)
    entries = inventory.chosen(inventory.entries(folder), options.kind, options.older_than)
    if options.action == "verify":
        problems = inventory.verify(entries)
        print("\n".join([*problems, f"{len(entries)} verified, {len(problems)} damaged"]))
        return int(bool(problems))
    print(f"{folder}\n{inventory.format_table(entries, options.by)}", flush=True)
    if options.action == "list" or not entries:
        return 0
    message = f"This removes {inventory.total(entries)}."
    advice = "remove it, or --kind, --older-than for less"
    if not options.yes and not confirmed(message, "Remove", advice):
        return 1
    removed, busy = inventory.clear(entries)
    print(f"removed {inventory.total(removed)}")
    if busy:
        print("in use by a running process, not removed: " + ", ".join(e.name for e in busy))
    return 0


if __name__ == "__main__":
    sys.exit(main())

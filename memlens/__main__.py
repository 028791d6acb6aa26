"""The command line: ``memlens reproduce``, ``memlens claims`` and ``memlens scores``."""

import argparse
import ast
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code.

    0; 1: a notebook failed, or a page is out of date; 2: wrong use; 130: stopped by hand.
    """
    options = build_parser().parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, FileNotFoundError) as error:
        print(f"memlens: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nmemlens: stopped; what was finished is kept in the cache", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `memlens scores | head`: the reader has seen enough
        sys.stdout = None
        return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser; it loads nothing heavy, so that ``--help`` is quick."""
    parser = argparse.ArgumentParser(prog="memlens", description="See what a network memorizes.")
    commands = parser.add_subparsers(required=True, metavar="command")
    job = commands.add_parser("reproduce", help="run the notebooks: every figure, every claim")
    job.set_defaults(run=run_reproduce)
    job.add_argument("--profile", default="digits", help="data set, net, recipes (digits)")
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
    book = commands.add_parser("claims", help="the ledger: every claim, measured, with a verdict")
    book.set_defaults(run=run_claims)
    book.add_argument("--profile", default="digits", help="whose claims (digits)")
    book.add_argument("--readme", type=Path, metavar="FILE", help="write them into this page")
    book.add_argument("--check", action="store_true", help="write nothing; 1 if the page is stale")
    table = commands.add_parser("scores", help="the catalogue: every score, its cost, its source")
    table.set_defaults(run=run_scores)
    return parser


def parse_parameter(text: str) -> tuple[str, Any]:
    """``"seeds=3"`` as ``("seeds", 3)``; what is no Python literal stays text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, found {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def run_reproduce(options: argparse.Namespace) -> int:
    """Run the notebooks; 1 if any failed."""
    from memlens.reproduce import reproduce

    asked = {"scale": options.scale, "n_samples": options.samples}
    asked = {name: value for name, value in asked.items() if value is not None}
    parameters = asked | dict(options.parameters)
    report = reproduce(options.profile, options.only, options.fresh, options.save, parameters)
    return int((report["failure"] != "").any())


def run_claims(options: argparse.Namespace) -> int:
    """Print how the claims fare; write the ledger into a page, or check the page's copy of it."""
    from memlens import ledger, store

    print(ledger.summary(ledger.ledger(options.profile)), flush=True)
    page = options.readme or store.root() / "README.md"
    if options.check:
        current = ledger.is_current(page, options.profile)
        call = f"memlens claims --profile {options.profile} --readme {page}"
        print(f"\n{page}: " + ("up to date" if current else f"out of date; run `{call}`"))
        return int(not current)
    if options.readme:
        changed = ledger.update_readme(page, options.profile)
        print(f"\n{page}: " + ("written" if changed else "up to date"))
    return 0


def run_scores(options: argparse.Namespace) -> int:
    """Print the catalogue."""
    from memlens.costs import catalogue

    print(catalogue().to_string(max_colwidth=60), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

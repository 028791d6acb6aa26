"""Make ``.venv`` with what a command of the Makefile needs; do nothing when it is already right.

It runs before anything is installed, on whatever ``python3`` the machine has: so it uses the
standard library only, lies outside the package, and even an old Python can read it (and be told
what to do). uv does the work where it is found, venv and pip where it is not.

An install that is killed half-way can look finished to the next one. So a stamp, the hash of all
that shapes the environment, is written last, and a ``.venv`` without the right stamp is removed
and made again. The stamp also names the extras that are in; others are added to them.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "memlens.stamp"
FIGURES = ("confident", "notebooks")  # the extras that running the notebooks needs
OLDEST = (3, 11)
SPACE_GB = 6.0  # the stock torch wheels for Linux bring the CUDA libraries along


def find_newer_python() -> "str | None":
    """Path of an installed Python that is new enough, or None."""
    for name in ("python3.14", "python3.13", "python3.12", "python3.11"):
        path = shutil.which(name)
        if path and subprocess.call([path, "-c", ""], stderr=subprocess.DEVNULL) == 0:
            return path
    return None


def read_pyproject() -> dict:
    """The contents of pyproject.toml."""
    import tomllib  # from 3.11 on

    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def extras_of(purpose: str) -> "list[str]":
    """The sorted extras for a purpose: "figures", or "test" for all that there are."""
    every = read_pyproject()["project"]["optional-dependencies"]
    return sorted(FIGURES if purpose == "figures" else every)


def wanted_hash() -> str:
    """Hash of the dependencies, the exact versions, the Python, the machine and the place.

    The place, because an environment does not survive a move. Settings of ruff or pytest in
    pyproject.toml are left out: changing them asks for no new install.
    """
    project = read_pyproject()
    keys = ("requires-python", "dependencies", "optional-dependencies", "scripts")
    shaping = [project["build-system"], [project["project"].get(key) for key in keys]]
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in pins if line and not line.startswith("#")]
    where = [sys.version_info[:2], sys.platform, platform.machine(), str(ROOT)]
    return hashlib.sha256(json.dumps([shaping, pins, where]).encode()).hexdigest()


def installed() -> "list[str] | None":
    """The extras in a ``.venv`` that was finished for what is wanted now; None without one."""
    if not (VENV / "bin" / "python").exists() or not STAMP.is_file():
        return None
    stamp, _, extras = STAMP.read_text(encoding="utf-8").partition("\n")
    return extras.split() if stamp == wanted_hash() else None


def is_ready(extras: "list[str]") -> bool:
    """Return whether ``.venv`` is up to date, with at least these extras."""
    found = installed()
    return found is not None and set(extras) <= set(found)


def remove() -> None:
    """Remove ``.venv``, be it a folder or a link to one."""
    if VENV.is_symlink():
        VENV.unlink()
    elif VENV.exists():
        print("memlens: removing the unfinished or outdated .venv", flush=True)
        shutil.rmtree(VENV)


def commands(installer: str) -> "tuple[list[str], list[str]]":
    """The command that makes the environment, and the one that installs what is put after it."""
    # inside an active environment, the Python that it was made from
    base = getattr(sys, "_base_executable", None) or sys.executable
    inside = str(VENV / "bin" / "python")
    pins = ["-c", "constraints.txt"]
    if installer == "auto":
        installer = "uv" if shutil.which("uv") else "pip"
    if installer == "uv":
        make = ["uv", "venv", "--quiet", "--python", base, str(VENV)]
        # compiled once here (a minute), or again in every process: importing torch takes 3 s, not 9
        return make, ["uv", "pip", "install", "--compile-bytecode", "--python", inside] + pins
    pip = [inside, "-m", "pip", "install", "--disable-pip-version-check"]
    return [base, "-m", "venv", str(VENV)], pip + pins


def call(command: "list[str]") -> "int | OSError":
    """Run a command in the checkout; its exit code, or why it did not start."""
    print("memlens: " + " ".join(command).replace(str(ROOT) + os.sep, ""), flush=True)
    try:
        return subprocess.call(command, cwd=str(ROOT))
    except OSError as error:
        return error


def give_up(code: "int | OSError", advice: str) -> None:
    """End the script with what to do about a command that failed."""
    free = shutil.disk_usage(str(ROOT)).free / 1e9
    sys.exit(
        "memlens: the command above failed (%s). %s\n"
        "It needs a network and about %.0f GB of disk (%.1f GB are free here)."
        % (code, advice, SPACE_GB, free)
    )


def run(command: "list[str]", advice: str) -> None:
    """Run a command of `build`; a failure ends the script with what to do about it."""
    code = call(command)
    if code != 0:
        give_up(code, advice + " Running make again starts afresh.")


def write_stamp(extras: "list[str]") -> None:
    """Say, in one step, that the environment is finished with these extras."""
    part = STAMP.with_suffix(".part")
    with open(str(part), "w", encoding="utf-8") as file:
        file.write(wanted_hash() + "\n" + " ".join(extras))
        file.flush()
        os.fsync(file.fileno())
    os.replace(str(part), str(STAMP))


def build(installer: str, extras: "list[str]") -> None:
    """Make the environment from nothing, check that torch loads, write the stamp last."""
    remove()
    print("memlens: making .venv, %.0f GB; uv takes 2 minutes, pip 5" % SPACE_GB, flush=True)
    make, fill = commands(installer)
    run(make, "On Debian and Ubuntu, python3-venv has to be installed first.")
    run(fill + ["-e", ".[%s]" % ",".join(extras)], "Its own message says why.")
    check = [str(VENV / "bin" / "python"), "-c", "import torch, torchvision, sklearn"]
    run(check, "The packages are there but do not load.")
    write_stamp(extras)


def add(installer: str, extras: "list[str]", found: "list[str]") -> None:
    """Add what further extras require to a finished environment, and touch nothing else in it.

    There is no stamp meanwhile, so that a kill leaves an environment that is made again. But an
    installer that ends by itself, without a network say, has left alone what was there.
    """
    missing = [name for name in extras if name not in found]
    print("memlens: adding to .venv: " + ", ".join(missing), flush=True)
    known = read_pyproject()["project"]["optional-dependencies"]
    STAMP.unlink()
    further = sorted({text for name in missing for text in known[name]})
    code = call(commands(installer)[1] + further)
    if code != 0:
        if not isinstance(code, int) or code > 0:  # below 0 it was killed
            write_stamp(found)
        give_up(code, "Its own message says why.")
    write_stamp(sorted(set(found) | set(extras)))


def prepare(installer: str, extras: "list[str]") -> None:
    """`build` or `add` what is missing, while a second make in another terminal waits."""
    import fcntl

    with open(str(ROOT / ".venv.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = installed()
        if found is None:
            build(installer, extras)
        elif not is_ready(extras):
            add(installer, extras, found)


def main() -> int:
    """Make the environment if it is not there; returns the exit code."""
    if sys.version_info < OLDEST:
        newer = find_newer_python()
        if newer is None:
            found = "%d.%d" % sys.version_info[:2]
            sys.exit("memlens needs Python 3.11 or newer; %s is %s" % (sys.executable, found))
        os.execv(newer, [newer] + sys.argv)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--installer", choices=["auto", "uv", "pip"], default="auto")
    parser.add_argument("--for", dest="purpose", choices=["figures", "test"], default="test")
    options = parser.parse_args()
    extras = extras_of(options.purpose)
    try:
        if not is_ready(extras):
            prepare(options.installer, extras)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

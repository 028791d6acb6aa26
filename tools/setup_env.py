"""Make ``.venv`` with everything memlens needs; do nothing when it is already right.

It runs before anything is installed, on whatever ``python3`` the machine has: so it uses the
standard library only, lies outside the package, and even an old Python can read it (and be told
what to do). uv does the work where it is found, venv and pip where it is not.

An install that is killed half-way can look finished to the next one. So a stamp, the hash of all
that shapes the environment, is written last, and a ``.venv`` without the right stamp is removed
and made again.
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
OLDEST = (3, 11)
SPACE_GB = 6.0  # the stock torch wheels for Linux bring the CUDA libraries along


def find_newer_python() -> "str | None":
    """Path of an installed Python that is new enough, or None."""
    for name in ("python3.14", "python3.13", "python3.12", "python3.11"):
        path = shutil.which(name)
        if path and subprocess.call([path, "-c", ""], stderr=subprocess.DEVNULL) == 0:
            return path
    return None


def wanted_stamp() -> str:
    """Hash of the dependencies, the exact versions, the Python, the machine and the place.

    The place, because an environment does not survive a move. Settings of ruff or pytest in
    pyproject.toml are left out: changing them asks for no new install.
    """
    import tomllib  # from 3.11 on

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    keys = ("requires-python", "dependencies", "optional-dependencies", "scripts")
    shaping = [project["build-system"], [project["project"].get(key) for key in keys]]
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in pins if line and not line.startswith("#")]
    where = [sys.version_info[:2], sys.platform, platform.machine(), str(ROOT)]
    return hashlib.sha256(json.dumps([shaping, pins, where]).encode()).hexdigest()


def is_ready() -> bool:
    """Whether ``.venv`` was finished for exactly what is wanted now."""
    if not (VENV / "bin" / "python").exists() or not STAMP.is_file():
        return False
    return STAMP.read_text(encoding="utf-8") == wanted_stamp()


def remove() -> None:
    """Remove ``.venv``, be it a folder or a link to one."""
    if VENV.is_symlink():
        VENV.unlink()
    elif VENV.exists():
        print("memlens: removing the unfinished or outdated .venv", flush=True)
        shutil.rmtree(VENV)


def commands(installer: str) -> "tuple[list[str], list[str]]":
    """The two commands that make the environment and fill it."""
    # inside an active environment, the Python that it was made from
    base = getattr(sys, "_base_executable", None) or sys.executable
    inside = str(VENV / "bin" / "python")
    extras = "[test,confident,adversarial,lightning,huggingface,cluster]"
    what = ["-c", "constraints.txt", "-e", "." + extras]
    if installer == "auto":
        installer = "uv" if shutil.which("uv") else "pip"
    if installer == "uv":
        make = ["uv", "venv", "--quiet", "--python", base, str(VENV)]
        # compiled once here (a minute), or again in every process: importing torch takes 3 s, not 9
        return make, ["uv", "pip", "install", "--compile-bytecode", "--python", inside] + what
    pip = [inside, "-m", "pip", "install", "--disable-pip-version-check"]
    return [base, "-m", "venv", str(VENV)], pip + what


def run(command: "list[str]", advice: str) -> None:
    """Run a command in the checkout; a failure ends the script with what to do about it."""
    print("memlens: " + " ".join(command).replace(str(ROOT) + os.sep, ""), flush=True)
    try:
        code = subprocess.call(command, cwd=str(ROOT))
    except OSError as error:
        code = error
    if code != 0:
        free = shutil.disk_usage(str(ROOT)).free / 1e9
        sys.exit(
            "memlens: the command above failed (%s). %s\n"
            "It needs a network and about %.0f GB of disk (%.1f GB are free here). "
            "Running make again starts afresh." % (code, advice, SPACE_GB, free)
        )


def build(installer: str) -> None:
    """Make the environment from nothing, check that torch loads, write the stamp last."""
    remove()
    print("memlens: making .venv, %.0f GB; uv takes 2 minutes, pip 5" % SPACE_GB, flush=True)
    make, fill = commands(installer)
    run(make, "On Debian and Ubuntu, python3-venv has to be installed first.")
    run(fill, "Its own message says why.")
    check = [str(VENV / "bin" / "python"), "-c", "import torch, torchvision, sklearn"]
    run(check, "The packages are there but do not load.")
    part = STAMP.with_suffix(".part")
    with open(str(part), "w", encoding="utf-8") as file:
        file.write(wanted_stamp())
        file.flush()
        os.fsync(file.fileno())
    os.replace(str(part), str(STAMP))


def build_alone(installer: str) -> None:
    """`build`, while a second make in another terminal waits for the first."""
    import fcntl

    with open(str(ROOT / ".venv.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_ready():
            build(installer)


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
    installer = parser.parse_args().installer
    try:
        if not is_ready():
            build_alone(installer)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Describes the commit and the machine, to be recorded with a benchmark's results."""

import datetime
import pathlib
import platform
import subprocess


def processor() -> str:
    """Returns the processor's name, from /proc/cpuinfo on Linux."""
    info = pathlib.Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(": ")[2] if names else platform.processor()


def commit() -> str:
    """Returns the git commit of this checkout, with "+" if its code has uncommitted changes."""
    root = pathlib.Path(__file__).parent.parent

    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "*.py")
    return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")


def of_now() -> dict[str, str]:
    """Returns the commit, today's date and the machine, for a JSON file of results."""
    from reptile_tf import device

    machine = f"{processor()}, {device.cores()} cores"
    return {"commit": commit(), "date": datetime.date.today().isoformat(), "machine": machine}

"""Describes the commit and the machine, to be recorded with a benchmark's results."""

import datetime
import pathlib
import platform
import subprocess


def processor() -> str:
    """Returns the processor's name, family and model, from /proc/cpuinfo on Linux.

    The name alone does not tell generations apart on many virtual machines.
    """
    info = pathlib.Path("/proc/cpuinfo")
    first = info.read_text().split("\n\n")[0].splitlines() if info.exists() else []
    found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first)}
    if "model name" not in found:
        return platform.processor()
    return f"{found['model name']} (family {found.get('cpu family')}, model {found.get('model')})"


def commit(root: pathlib.Path = pathlib.Path(__file__).parent.parent) -> str:
    """Returns the git commit of a checkout, this one by default, with "+" if its code has uncommitted changes."""

    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "*.py")
    return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")


def of_now() -> dict[str, str]:
    """Returns the commit, today's date and the machine, for a JSON file of results."""
    from reptile_tf import device

    machine = f"{processor()}, {device.cores()} cores"
    return {"commit": commit(), "date": datetime.date.today().isoformat(), "machine": machine}

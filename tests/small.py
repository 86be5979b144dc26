"""Stands in for `python` in the documentation's commands: runs the same command at a small size on one CPU.

With CHECK_ONLY=1 it runs nothing, and only checks that the command exists and accepts the flags.
"""

import importlib.util
import os
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parent.parent
RUN = "--device=cpu --meta-iters=2 --meta-batch=2 --filters=2 --inner-iters=2 --inner-batch=2 --train-shots=2 "
RUN += "--eval-samples=2 --eval-tasks=2 --eval-interval=1 --eval-iters=1"
SMALL = {
    "run_omniglot.py": f"--source=glyphs {RUN}",
    "run_folder.py": f"--size=16 {RUN}",
    "run_miniimagenet.py": RUN,
    "pytest": "--collect-only -q",
}


def small(command: list[str]) -> list[str]:
    """Returns the command with flags appended that make it small."""
    if command[:2] == ["-m", "reptile_tf.launch"]:
        command = [re.sub(r"^([3-9]|\d\d+)$", "2", word) for word in command[:4]] + command[4:]
    names = [word for word in command if word in SMALL]
    no_split = ["--split="] if "background" in command else []  # glyphs have no alphabets
    return command + [flag for name in names for flag in SMALL[name].split()] + no_split


def check(command: list[str]) -> None:
    """Raises an error if the command does not exist or rejects the flags."""
    if command[0] in ("-", "-c"):
        compile(command[1] if command[0] == "-c" else sys.stdin.read(), "program", "exec")
    for at, word in enumerate(command):
        if match := re.fullmatch(r"run_(\w+)\.py", word):
            from reptile_tf import flags, problems

            assert (ROOT / word).is_file(), word
            flags.parse(command[at:], "", problems.find(match[1]))
            return
        if word.endswith(".py"):
            source = (ROOT / word).read_text(encoding="utf-8")
            missing = [flag for flag in command[at:] if flag.startswith("--") and f'"{flag}"' not in source]
            assert not missing, f"{word} has no {missing}"
    if command[0] == "-m":
        spec = importlib.util.find_spec(command[1])
        assert spec, f"there is no module {command[1]}"
        source = pathlib.Path(spec.origin).read_text(encoding="utf-8")
        if command[1] != "pytest":
            assert all(f'"{word}"' in source for word in command[2:] if word.startswith("--")), command


if __name__ == "__main__":
    if os.environ.get("CHECK_ONLY") or sys.argv[1].startswith(("experiments/", "benchmarks/")):
        # Tests of their own run these.
        sys.path.insert(0, str(ROOT))
        check(sys.argv[1:])
    else:
        os.environ.pop("TF_CONFIG", None)  # for several hosts, but this process runs alone
        os.execv(sys.executable, [sys.executable, *small(sys.argv[1:])])

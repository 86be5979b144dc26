"""The command line: absl flags made from `Settings`, with hyphens or underscores, presets and a readable --help."""

import dataclasses
import os
import shutil
import sys
import textwrap
from collections.abc import Callable
from typing import Any

from absl import flags

from reptile_tf.errors import UserError
from reptile_tf.problems import Problem
from reptile_tf.settings import ALIASES, Settings, SettingsError, flag, renamed

_DEFINE: dict[Any, Callable] = {
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_boolean,
    str: flags.DEFINE_string,
}


class FlagsError(UserError):
    """Raised for an invalid command line."""


def parse(argv: list[str], doc: str, problem: Problem) -> tuple[Settings, frozenset[str]]:
    """Reads a command line.

    Args:
      argv: arguments like sys.argv, with the program's name first. Flags may have hyphens or underscores.
      doc: first paragraph of --help.
      problem: the problem that provides presets, defaults and settings.

    Returns:
      The settings, from flags, the preset and the defaults, in this order of precedence; and the names of the settings
      that the user chose by flag or preset.

    Raises:
      FlagsError: a flag or preset is unknown, a value is invalid, or two values contradict each other.
      SystemExit: --help was printed; the code is 0.
    """
    presets = problem.presets
    fields = [field for field in dataclasses.fields(Settings) if field.name not in problem.lacks]
    values = flags.FlagValues()
    flags.DEFINE_string("preset", "", "settings to start from", flag_values=values)
    for field in fields:
        default = problem.defaults.get(field.name, field.default)
        _DEFINE[field.type](field.name, default, field.metadata["help"], flag_values=values)
    for alias, (name, value) in ALIASES.items():
        meaning = flag(name) if value is True else f"{flag(name)} {value}"
        flags.DEFINE_boolean(alias, False, f"the same as {meaning}", flag_values=values)
    if {"--help", "-h", "-help", "--helpfull"} & set(argv[1:]):
        try:
            print(_help(values, doc, presets, fields), flush=True)
        except BrokenPipeError:  # `--help | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    try:
        extra = values(_underscored(argv))[1:]
    except (flags.Error, ValueError) as error:  # absl raises ValueError for --noflag=value
        raise FlagsError(str(error)) from error
    if extra:
        raise FlagsError(f"not a flag: {' '.join(extra)} (flags begin with --)")

    if values.preset and values.preset not in presets:
        raise FlagsError(f"unknown preset {values.preset!r}; there are: {', '.join(presets)}")
    names = [*(field.name for field in fields), *ALIASES]
    try:
        given = renamed({name: values[name].value for name in names if values[name].present})
        settings = Settings.of(problem, values.preset, **given)
    except SettingsError as error:
        raise FlagsError(error.on_command_line) from error
    return settings, frozenset(given) | frozenset(presets.get(values.preset, ()))


def _underscored(argv: list[str]) -> list[str]:
    """Replaces hyphens in flag names, but not in values, by underscores."""
    normal = [argv[0]]
    for i, argument in enumerate(argv[1:], 1):
        if argument == "--":
            return normal + argv[i:]
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            argument = "--" + name.replace("-", "_") + equals + value
        normal.append(argument)
    return normal


def _help(
    values: flags.FlagValues, doc: str, presets: dict[str, dict[str, Any]], fields: list[dataclasses.Field]
) -> str:
    width = min(shutil.get_terminal_size().columns, 110)
    indent = " " * 8
    wrapper = textwrap.TextWrapper(width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    lines = [doc.strip(), "", "Flags and their defaults (--inner-iters and --inner_iters are the same):"]

    def describe(name: str, text: str, default: Any) -> None:
        name = name.replace("_", "-")
        if isinstance(default, bool):
            lines.append(f"  --[no]{name}")
        else:
            lines.append(f"  --{name}" + ("" if default in ("", None) else f" ({default})"))
        lines.extend(wrapper.wrap(text))

    names = ", ".join(presets)
    describe("preset", f"start from one of these settings, which other flags override: {names}", "")
    group = None
    for field in fields:
        if field.metadata["group"] != group:
            group = field.metadata["group"]
            lines += ["", f"{group}:"]
        choices = field.metadata["choices"]
        text = field.metadata["help"] + (f" [{' | '.join(map(str, choices))}]" if choices else "")
        describe(field.name, text, values[field.name].default)
    lines += ["", "Aliases, some of them from the original code:"]
    for alias in ALIASES:
        describe(alias, values[alias].help, False)
    return "\n".join(lines)

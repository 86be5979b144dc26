"""Tests of the command line: the original code's flags and defaults, presets, and errors in one line."""

import os
import pathlib
import random
import subprocess
import sys

import pytest

from reptile_tf import flags, problems
from reptile_tf.errors import UserError
from reptile_tf.problems.omniglot import PROBLEM
from reptile_tf.settings import ALIASES, Settings, SettingsError, names_of, renamed

ROOT = pathlib.Path(__file__).parent.parent


def parse(*arguments):
    return flags.parse(["run.py", *arguments], "What it does.", PROBLEM)[0]


def test_defaults_are_the_originals():
    expected = {
        "pretrained": False,
        "seed": 0,
        "checkpoint": "model_checkpoint",
        "classes": 5,
        "shots": 5,
        "train_shots": 0,
        "inner_batch": 5,
        "inner_iters": 20,
        "replacement": False,
        "learning_rate": 1e-3,
        "meta_step": 0.1,
        "meta_step_final": 0.1,
        "meta_batch": 1,
        "meta_iters": 400_000,
        "eval_batch": 5,
        "eval_iters": 50,
        "eval_samples": 10_000,
        "weight_decay": 1,
        "transductive": False,
        "algorithm": "reptile",
        "foml_tail": 0,
        "inner_optimizer": "adam",
    }
    settings = parse()
    assert {name: getattr(settings, name) for name in expected} == expected


def test_hyphens_and_underscores_mean_the_same():
    assert parse("--inner-iters", "7", "--meta-step=0.5") == parse("--inner_iters=7", "--meta_step", "0.5")
    assert parse("--inner-iters", "7").inner_iters == 7
    assert parse("--checkpoint", "a-b_c").checkpoint == "a-b_c"  # underscores in values are kept


def test_a_flag_beside_a_preset_wins_wherever_it_stands():
    for arguments in (
        ("--preset=omniglot-1shot-20way", "--inner-iters=3"),
        ("--inner-iters=3", "--preset=omniglot-1shot-20way"),
    ):
        settings = parse(*arguments)
        assert settings.inner_iters == 3
        assert settings.classes == 20
    # This also holds for the default value.
    assert parse("--preset=omniglot-1shot-20way", "--classes=5").classes == 5


@pytest.mark.parametrize(
    ("preset", "paper"),
    [
        ("omniglot-1shot-5way", (1, 5, 10, 10, 5, 1e-3, 1, 0, 5, 100_000, 5, 50)),
        ("omniglot-5shot-5way", (5, 5, 10, 10, 5, 1e-3, 1, 0, 5, 100_000, 5, 50)),
        ("omniglot-1shot-20way", (1, 20, 10, 20, 10, 5e-4, 1, 0, 5, 200_000, 10, 50)),
        ("omniglot-5shot-20way", (5, 20, 10, 20, 10, 5e-4, 1, 0, 5, 200_000, 10, 50)),
    ],
)
def test_presets_are_the_papers_settings(preset, paper):
    names = (
        "shots",
        "classes",
        "train_shots",
        "inner_batch",
        "inner_iters",
        "learning_rate",
        "meta_step",
        "meta_step_final",
        "meta_batch",
        "meta_iters",
        "eval_batch",
        "eval_iters",
    )
    settings = parse("--preset", preset)
    assert tuple(getattr(settings, name) for name in names) == paper


def test_the_meta_step_goes_down_in_a_line():
    settings = Settings(meta_iters=4, meta_step=1.0, meta_step_final=0.2)
    assert [settings.schedule(i) for i in range(4)] == pytest.approx([1.0, 0.8, 0.6, 0.4])


def test_adam_as_outer_optimizer_has_its_own_rate_unless_given():
    settings = parse("--preset=omniglot-1shot-5way", "--meta-optimizer=adam")
    assert (settings.meta_step, settings.meta_step_final) == (0.001, 0.001)
    settings = parse("--meta-optimizer=adam", "--meta-step=0.01", "--meta-step-final=0")
    assert (settings.meta_step, settings.meta_step_final) == (0.01, 0)


LIKELY = {
    "seed": [0, 7], "classes": [2, 5, 20], "shots": [1, 5], "train_shots": [0, 10], "filters": [8, 32, 64],
    "inner_batch": [5, 10], "inner_iters": [1, 8], "replacement": [True, False], "learning_rate": [1e-3, 0.5],
    "meta_step": [0.1, 1.0], "meta_step_final": [0.0, 0.1], "meta_batch": [1, 5], "meta_iters": [10, 1000],
    "meta_optimizer": ["sgd", "adam"], "transductive": [True, False], "eval_iters": [0, 50], "mode": ["stacked"],
    "checkpoint": ["a-b"], "algorithm": ["reptile", "foml", "maml"], "inner_optimizer": ["adam", "sgd"],
    "sequential": [True, False], "foml": [True], "sgd": [True], "in_turn": [True], "device": ["cpu"], "tf32": [True],
}  # fmt: skip


def settings_or_message(make, *arguments, **options):
    try:
        return make(*arguments, **options)
    except (SettingsError, flags.FlagsError) as error:
        return error.on_command_line


@pytest.mark.parametrize("problem", [problems.find(name) for name in problems.names()], ids=problems.names())
def test_library_and_command_line_make_the_same_settings(problem):
    rng, compared = random.Random(0), 0
    for _ in range(300):
        preset = rng.choice(["", *problem.presets])
        changes = {name: rng.choice(values) for name, values in LIKELY.items() if rng.random() < 0.3}

        def in_a_program(preset=preset, changes=changes):
            today = renamed(changes)
            return Settings.preset(preset, **today) if preset else Settings(**(problem.defaults | today))

        ours = settings_or_message(in_a_program)
        line = ["run.py", f"--preset={preset}", *(f"--{name}={str(value).lower()}" for name, value in changes.items())]
        theirs = settings_or_message(lambda line: flags.parse(line, "What it does.", problem)[0], line)
        assert ours == theirs, line
        compared += isinstance(ours, Settings)
    assert compared > 150
    with pytest.raises(SettingsError, match="unknown preset 'chess'; there are: folder-quick, folder-1shot-5way, "):
        Settings.preset("chess")


@pytest.mark.parametrize("alias", ALIASES)
def test_the_originals_flags_are_values_of_todays(alias):
    name, value = ALIASES[alias]
    others = ["--sgd"] if alias == "maml" else []
    today = f"--{name}={str(value).lower()}"
    assert (
        parse(f"--{alias}", *others) == parse(today, *others) == parse(today, f"--{alias.replace('_', '-')}", *others)
    )
    assert getattr(parse(f"--{alias}", *others), name) == value
    assert parse(f"--no{alias}") == parse()


def test_gradients_mean_a_partial_sum():
    assert parse("--gradients=1,2").algorithm == "partial-sum"
    rotated = {"gradients": "1,2", "rotations": True}  # Omniglot's default
    assert parse("--gradients=1,2") == Settings(**rotated) == Settings(algorithm="partial-sum", **rotated)


def test_what_a_setting_affects_is_said_once():
    assert names_of(affects="host") == ["checkpoint", "data_dir", "skip_bad_images"]
    assert {"shots", "transductive", "mode"} <= set(names_of(affects="results"))
    assert set(names_of(fixed=True)) < set(names_of(affects="weights"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--inner-iter=3"], "Did you mean: inner_iters"),
        (["--shots=one"], "--shots=one"),
        (["--seed=18446744073709551616"], "--seed must be at most 18446744073709551615"),
        (["--shots=0"], "--shots must be at least 1, not 0"),
        (["--inner-iters=0"], "--inner-iters must be at least 1"),
        (["--meta-step=nan"], "--meta-step must be at least 0, not nan"),
        (["--learning-rate=inf"], "--learning-rate must be at most"),
        (["--save-interval=0x" + "f" * 5000], "--save-interval must be at most"),
        (["--filters=1000000000"], "--filters must be at most 1024"),
        (["--meta-batch=1000000000"], "--meta-batch must be at most 10000"),
        (["--eval-samples=1000000000000"], "--eval-samples must be at most 1000000"),
        (
            ["--inner-batch=100000", "--inner-iters=1000"],
            "--meta-batch x --inner-iters x --inner-batch must be at most",
        ),
        (["--eval-batch=100000000", "--eval-iters=0"], "--eval-iters x --eval-batch must be at most"),
        (["--preset=omniglot"], "unknown preset 'omniglot'; there are: omniglot-1shot-5way"),
        (["--source=web"], "--source must be one of raw, tfds, tfds:NAME, glyphs"),
        (["--foml-tail=1"], "--foml-tail needs --algorithm foml or maml"),
        (["--maml"], "--algorithm maml needs --inner-optimizer sgd"),
        (["--maml", "--sgd", "--foml"], "--maml and --foml exclude each other"),
        (["--foml", "--algorithm=reptile"], "--foml and --algorithm exclude each other"),
        (["--noin-turn", "--sequential"], "--noin-turn and --sequential exclude each other"),
        (["--sgd", "--inner-optimizer=adam"], "--sgd and --inner-optimizer exclude each other"),
        (["--algorithm=partial-sum"], "--gradients and --algorithm partial-sum can only be used together"),
        (["--gradients=1", "--foml"], "--gradients and --algorithm partial-sum can only be used together"),
        (["--inner-iters=3", "--gradients=1,4"], "from 1 to --inner-iters 3, as in 1,2, not '1,4'"),
        (["--gradients=g1"], "as in 1,2, not 'g1'"),
        (["--gradients=1,"], "as in 1,2, not '1,'"),
        (["--gradients=" + "1" * 5000], "as in 1,2, not '111"),
        (["--foml", "--foml-tail=5"], "leaves none of the 5 images"),
        (["--replacement", "--inner-batch=26"], "cannot be larger than a task"),
        (["--replacement", "--shots=1", "--eval-batch=6"], "--eval-batch 6 cannot be larger"),
        (["transductive"], "not a flag: transductive"),
        (["two\nlines"], "not a flag: two lines"),
        (["--nosgd=1"], "--nosgd=1 does not take an argument"),
    ],
)
def test_a_bad_flag_gets_one_line(arguments, message):
    with pytest.raises(flags.FlagsError) as caught:
        parse(*arguments)
    assert message in caught.value.on_command_line
    assert "\n" not in str(caught.value)


def test_help_shows_every_flag_with_hyphens_and_its_default(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("What it does.")
    assert "--inner-iters (20)" in shown
    assert "--[no]transductive" in shown
    assert all(name in shown for name in PROBLEM.presets)


def test_what_determines_weights_does_not_name_evaluation():
    one = Settings(shots=1, train_shots=10, transductive=True, eval_iters=3, eval_batch=2)
    assert one.determining_weights() == Settings(shots=5, train_shots=10).determining_weights()
    assert Settings(shots=1).determining_weights() != Settings(shots=5).determining_weights()


def test_settings_in_a_program_are_checked_too():
    with pytest.raises(SettingsError, match="^classes must be at least 2") as caught:
        Settings(classes=1)
    assert caught.value.on_command_line.startswith("--classes must be")


def test_an_error_names_arguments_in_a_program_and_flags_on_the_command_line():
    error = UserError("lower --eval-batch or (--filters);\n see /a--b/--c and 3--4")
    assert str(error) == "lower eval_batch or (filters);  see /a--b/--c and 3--4"
    assert error.on_command_line == "lower --eval-batch or (--filters);  see /a--b/--c and 3--4"


def test_help_whose_reader_has_gone_ends_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, ROOT / "run_omniglot.py", "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_is_shown_where_not_every_letter_can_be():
    done = subprocess.run(
        [sys.executable, ROOT / "run_omniglot.py", "--help"],
        capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert r"97.68 \xb1 0.04 %" in done.stdout

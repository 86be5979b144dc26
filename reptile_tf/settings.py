"""All settings of a run, with the defaults of the original code.

Nothing here imports TensorFlow, so that `--help` and messages about mistyped flags appear at once.
"""

import dataclasses
import math
import re
from typing import TYPE_CHECKING, Any

from reptile_tf.errors import as_arguments

if TYPE_CHECKING:
    from reptile_tf.problems import Problem

# The groups of settings in --help.
TASKS, INNER, OUTER = "Tasks", "Inner loop (training)", "Outer step"
EVALUATION, RUNNING = "Evaluation", "Running"
# What a setting affects. A run resumes only if no setting that affects the weights has changed. The workers of a
# cluster must agree on all settings except those that affect only the host.
WEIGHTS, RESULTS, HOST = "weights", "results", "host"
_AFFECTS = {TASKS: WEIGHTS, INNER: WEIGHTS, OUTER: WEIGHTS, EVALUATION: RESULTS, RUNNING: RESULTS}  # the default


class SettingsError(ValueError):
    """Raised for an invalid setting. The message names the setting and says which values are valid.

    Attributes:
      on_command_line: the message with settings written as flags; str() has them written as arguments.
    """

    def __init__(self, message: str):
        self.on_command_line = message
        super().__init__(as_arguments(message))


# Upper bounds, far above any sensible value, beyond which a run would never end or exhaust the memory.
MOST_SAMPLES = 10**7
MOST = {int: 2**63 - 1, float: 3.4e38}  # the maxima of int64 and float32, for settings without a bound of their own


def _setting(default: Any, group: str, help: str, choices: tuple[str, ...] | tuple[int, ...] = (), **more: Any) -> Any:
    """Makes a field. `more` may set its bounds, `affects`, and `fixed` (--pretrained takes it from the checkpoint)."""
    metadata = {"group": group, "affects": _AFFECTS[group], "fixed": False, "help": help, "choices": choices}
    metadata |= {"low": None, "high": None} | more
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The paper's hyperparameters and the options of a run. Names and defaults follow the original code.

    Raises:
      SettingsError: a value is out of range or two settings contradict each other.
    """

    # fmt: off
    source: str = _setting("raw", TASKS, "source of the images: raw, the files in --data-dir; tfds, TensorFlow "
                                         "Datasets (with run_folder.py tfds:NAME, such as tfds:cifar10); glyphs, "
                                         "built-in drawings instead of Omniglot", fixed=True)
    seed: int = _setting(0, TASKS, "seed of the split, the initial weights and the tasks", low=0, high=2**64 - 1,
                         fixed=True)
    split: str = _setting("", TASKS, "classes for training, validation and test: shares, such as 64,16,20; or a "
                                     "file with the names of the test classes, one per line; or, for Omniglot, "
                                     "background, which tests on its evaluation alphabets (default: sets of folders or "
                                     "a table, otherwise 64,16,20; for Omniglot as in the paper)", fixed=True)
    classes: int = _setting(5, TASKS, "number of classes in a task, the N of N-way; with --pretrained it may differ "
                                      "from training", low=2)
    shots: int = _setting(5, TASKS, "support images of each class in evaluation, the K of K-shot (and in training, "
                                    "unless --train-shots is given)", low=1, affects=RESULTS)
    train_shots: int = _setting(0, TASKS, "images of each class in a training task (0: the same as --shots)", low=0)
    size: int = _setting(84, TASKS, "image height and width in pixels, after resizing", low=8, high=1024, fixed=True)
    channels: int = _setting(3, TASKS, "3 for colour images, 1 for grey images", choices=(1, 3), low=1, fixed=True)
    rotations: bool = _setting(False, TASKS, "add each training class rotated by 90, 180 and 270 degrees as a class "
                                             "of its own, as the paper does for Omniglot", fixed=True)
    flips: bool = _setting(False, TASKS, "add the mirrored images of each training class to that class", fixed=True)
    filters: int = _setting(64, TASKS, "number of filters of each convolution", low=1, high=1024, fixed=True)

    inner_batch: int = _setting(5, INNER, "samples per minibatch", low=1)
    inner_iters: int = _setting(20, INNER, "inner steps per task, k (k = 1 with Reptile is joint training)", low=1)
    replacement: bool = _setting(False, INNER, "draw each minibatch independently, instead of dealing out the "
                                               "shuffled images of a task", fixed=True)
    learning_rate: float = _setting(1e-3, INNER, "learning rate of the inner optimizer", low=0, fixed=True)
    inner_optimizer: str = _setting("adam", INNER, "optimizer of the inner loop; adam has beta_1 = 0, as in the paper",
                                    choices=("adam", "sgd"), fixed=True)
    weight_decay: float = _setting(1.0, INNER, "factor on all weights before every step (1: none)", low=0, fixed=True)
    algorithm: str = _setting(None, INNER, "the meta-gradient: reptile (the default); foml, first-order MAML; maml, "
                                           "MAML with second derivatives, where the last of the --inner-iters "
                                           "minibatches is the query set and the others are steps of SGD (needs "
                                           "--inner-optimizer sgd); partial-sum, the sum of the --gradients",
                              choices=("reptile", "foml", "maml", "partial-sum"))
    gradients: str = _setting("", INNER, "step numbers of the inner gradients in a partial sum, such as 1,2 (1 to k "
                                         "give Reptile, k alone gives first-order MAML)")
    foml_tail: int = _setting(0, INNER, "images of each class set aside for the last minibatch of foml or maml (0: it "
                                        "is drawn like the others)", low=0)
    sequential: bool = _setting(False, INNER, "run the tasks of a meta-batch one after another and pass Adam's state "
                                              "on, as the original code does; by default they run side by side and "
                                              "their states are averaged")

    meta_step: float = _setting(None, OUTER, "initial outer learning rate (default 0.1; with --meta-optimizer adam "
                                             "0.001)", low=0)
    meta_step_final: float = _setting(None, OUTER, "final outer learning rate, approached linearly (default 0.1; with "
                                                   "--meta-optimizer adam the same as --meta-step)", low=0)
    meta_batch: int = _setting(1, OUTER, "tasks per meta-iteration", low=1, high=10_000)
    meta_iters: int = _setting(400_000, OUTER, "number of meta-iterations", low=1, high=10**9)
    meta_optimizer: str = _setting("sgd", OUTER, "optimizer of the outer step; sgd is the paper's interpolation",
                                   choices=("sgd", "adam"))

    transductive: bool = _setting(False, EVALUATION, "classify all queries of a task in one batch, instead of each "
                                                     "one in a batch with the support set")
    eval_batch: int = _setting(5, EVALUATION, "samples per minibatch in evaluation", low=1)
    eval_iters: int = _setting(50, EVALUATION, "inner steps per task in evaluation", low=0)
    eval_samples: int = _setting(10_000, EVALUATION, "number of tasks in the final evaluation of each set of classes",
                                low=2, high=10**6)
    eval_interval: int = _setting(100, EVALUATION, "meta-iterations between validations on held-out classes",
                                  low=1)
    eval_tasks: int = _setting(8, EVALUATION, "tasks per validation", low=1, high=10**6)

    checkpoint: str = _setting("model_checkpoint", RUNNING, "folder of the run, for checkpoints, results and pictures",
                               affects=HOST)
    init_from: str = _setting("", RUNNING, "folder of a finished run whose weights are the initial ones (default: "
                                           "random weights)", affects=WEIGHTS)
    pretrained: bool = _setting(False, RUNNING, "evaluate the network in --checkpoint instead of training")
    data_dir: str = _setting("", RUNNING, "folder of the images (default: the data set's folder in data/, or the "
                                          "folder of TensorFlow Datasets)", affects=HOST)
    skip_bad_images: bool = _setting(False, RUNNING, "skip files that are not images, instead of stopping",
                                     affects=HOST)
    save_interval: int = _setting(1000, RUNNING, "meta-iterations between checkpoints", low=1)
    mode: str = _setting("auto", RUNNING, "how tasks run side by side: branches, each on a CPU core; stacked, in one "
                                          "XLA program; auto, which is stacked on a GPU and branches otherwise",
                         choices=("auto", "branches", "stacked"))
    device: str = _setting("auto", RUNNING, "where to run; auto: on a GPU if TensorFlow can use one, otherwise on the "
                                            "CPU; gpu: stop if it cannot", choices=("auto", "cpu", "gpu"))
    tf32: bool = _setting(False, RUNNING, "let a GPU round the factors of matrix products to TensorFloat-32, which is "
                                          "faster but less exact")
    # fmt: on

    def __post_init__(self):
        # A meta-step for interpolation is 0.1 to 1; as Adam's learning rate it would make phi diverge.
        is_adam = self.meta_optimizer == "adam"
        first = (0.001 if is_adam else 0.1) if self.meta_step is None else self.meta_step
        object.__setattr__(self, "meta_step", first)
        if self.meta_step_final is None:
            object.__setattr__(self, "meta_step_final", first if is_adam else 0.1)
        if self.algorithm is None:
            object.__setattr__(self, "algorithm", "partial-sum" if self.gradients else "reptile")
        for field in dataclasses.fields(self):
            kind: Any = field.type  # a class, because annotations are evaluated here
            value = _of_type(kind, getattr(self, field.name), field.name)
            object.__setattr__(self, field.name, value)  # the dataclass is frozen
            low, high, choices = (field.metadata[name] for name in ("low", "high", "choices"))
            high = high or MOST.get(kind)
            if low is not None and value > high:  # not printed: it may have more digits than Python converts
                raise SettingsError(f"{flag(field.name)} must be at most {high}")
            if low is not None and not value >= low:  # this form rejects NaN
                raise SettingsError(f"{flag(field.name)} must be at least {low}, not {value}")
            if choices and value not in choices:
                raise SettingsError(f"{flag(field.name)} must be one of {', '.join(map(str, choices))}, not {value!r}")
        if not re.fullmatch("raw|glyphs|tfds(:.+)?", self.source):
            raise SettingsError(f"--source must be one of raw, tfds, tfds:NAME, glyphs, not {self.source!r}")
        if self.meta_batch * self.inner_iters * self.inner_batch > MOST_SAMPLES:
            raise SettingsError(f"--meta-batch x --inner-iters x --inner-batch must be at most {MOST_SAMPLES}")
        if max(self.eval_iters, 1) * self.eval_batch > MOST_SAMPLES:
            raise SettingsError(f"--eval-iters x --eval-batch must be at most {MOST_SAMPLES}")
        if bool(self.gradients) != (self.algorithm == "partial-sum"):
            raise SettingsError("--gradients and --algorithm partial-sum can only be used together")
        if self.algorithm == "maml" and self.inner_optimizer != "sgd":
            raise SettingsError("--algorithm maml needs --inner-optimizer sgd: it differentiates through steps of SGD")
        if self.gradients and not 1 <= min(self.inner_gradients) <= max(self.inner_gradients) <= self.inner_iters:
            raise SettingsError(
                f"--gradients must be numbers from 1 to --inner-iters {self.inner_iters}, as in 1,2, "
                f"not {self.gradients!r}"
            )
        if self.foml_tail and not self.last_minibatch_apart:
            raise SettingsError("--foml-tail needs --algorithm foml or maml")
        if self.foml_tail >= self.images_per_class:
            raise SettingsError(
                f"--foml-tail {self.foml_tail} leaves none of the {self.images_per_class} images of a class "
                "(--train-shots, otherwise --shots) for the other steps"
            )
        if self.replacement and self.inner_batch > self.classes * (self.images_per_class - self.foml_tail):
            raise SettingsError(
                f"with --replacement a minibatch (--inner-batch {self.inner_batch}) cannot be larger than a task "
                f"({self.classes} classes x {self.images_per_class - self.foml_tail} images)"
            )
        if self.replacement and self.eval_batch > self.classes * self.shots:
            raise SettingsError(
                f"with --replacement, --eval-batch {self.eval_batch} cannot be larger than the support set "
                f"({self.classes} classes x {self.shots} images)"
            )

    @property
    def images_per_class(self) -> int:
        """The number of images of each class in a training task."""
        return self.train_shots or self.shots

    @property
    def last_minibatch_apart(self) -> bool:
        """Whether the last minibatch of a training task is its query minibatch, as in MAML and first-order MAML."""
        return self.algorithm in ("foml", "maml")

    @property
    def inner_gradients(self) -> set[int]:
        """The step numbers in `gradients`; 0 replaces parts that are not numbers."""
        return {int(part) if re.fullmatch(r"\s*\d{1,9}\s*", part) else 0 for part in self.gradients.split(",")}

    def training_arguments(self) -> dict[str, Any]:
        """Returns the arguments of `tasks.training_tasks` that do not change during a run."""
        return {
            "way": self.classes,
            "shots": self.images_per_class,
            "batch": self.inner_batch,
            "steps": self.inner_iters,
            "replacement": self.replacement,
            "query": self.last_minibatch_apart,
            "query_shots": self.foml_tail,
            "seed": self.seed,
            "count": self.meta_batch,
        }

    def evaluation_arguments(self) -> dict[str, Any]:
        """Returns the arguments of `tasks.evaluation_tasks` that do not change during an evaluation."""
        return {
            "way": self.classes,
            "shots": self.shots,
            "batch": self.eval_batch,
            "steps": self.eval_iters,
            "replacement": self.replacement,
            "seed": self.seed,
        }

    def split_arguments(self) -> dict[str, Any]:
        """Returns the arguments of `splits.split_classes` and `splits.split_names`."""
        return {
            "split": self.split,
            "seed": self.seed,
            "ways": self.classes,
            "train_images": self.images_per_class,
            "test_images": self.shots + 1,
        }

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "Settings":
        """Returns a problem's preset, for example "omniglot-1shot-5way", with the settings in `changes` replaced.

        Raises:
          SettingsError: there is no preset of this name, or the settings are invalid.
        """
        from reptile_tf import problems  # a circular import otherwise

        known = {preset: problem for problem in map(problems.find, problems.names()) for preset in problem.presets}
        if name not in known:
            raise SettingsError(f"unknown preset {name!r}; there are: {', '.join(known)}")
        return cls.of(known[name], name, **changes)

    @classmethod
    def of(cls, problem: "Problem", preset: str = "", **changes: Any) -> "Settings":
        """Returns a problem's defaults or preset with changes; raises SettingsError for invalid settings."""
        values = problem.defaults | problem.presets.get(preset, {})
        if changes.get("meta_optimizer") == "adam":  # the preset's meta-steps are for interpolation
            values = {name: value for name, value in values.items() if not name.startswith("meta_step")}
        return cls(**(values | changes))

    def determining_weights(self) -> dict[str, Any]:
        """Returns the settings, by name, on which the trained weights depend."""
        chosen = {name: getattr(self, name) for name in names_of(affects=WEIGHTS)}
        return chosen | {"train_shots": self.images_per_class}

    def determining_results(self) -> dict[str, Any]:
        """Returns the settings, by name, on which all workers of a run must agree: all but those of the host."""
        of_a_host = names_of(affects=HOST)
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in of_a_host}

    def schedule(self, iteration: int) -> float:
        """Returns the outer learning rate of a meta-iteration, counted from 0: linear, as in the original code."""
        done = iteration / self.meta_iters
        return done * self.meta_step_final + (1 - done) * self.meta_step


def _of_type(wanted: type, value: Any, name: str) -> Any:
    """Converts a value to a setting's type; accepts NumPy numbers, integral floats, and integers for floats."""
    if hasattr(value, "item") and not isinstance(value, str):  # a NumPy number
        value = value.item()
    if wanted is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if wanted is float and type(value) is int:
        return float(value) if abs(value) < 2**1023 else math.inf
    if type(value) is not wanted:
        what = {int: "a whole number", float: "a number", bool: "True or False", str: "a string"}[wanted]
        raise SettingsError(f"{flag(name)} must be {what}, not {value!r}")
    return value


def names_of(**metadata: Any) -> list[str]:
    """Returns the names of the settings whose metadata have these values, such as `fixed=True`."""
    fields = dataclasses.fields(Settings)
    return [f.name for f in fields if all(f.metadata[key] == value for key, value in metadata.items())]


def flag(name: str) -> str:
    """Returns a setting's flag on the command line."""
    return "--" + name.replace("_", "-")


# Flags of the original code and of earlier versions that have become values of other settings.
ALIASES: dict[str, tuple[str, Any]] = {
    "foml": ("algorithm", "foml"),
    "maml": ("algorithm", "maml"),
    "sgd": ("inner_optimizer", "sgd"),
    "in_turn": ("sequential", True),
}


def renamed(values: dict[str, Any]) -> dict[str, Any]:
    """Replaces aliases, from the command line or an earlier version, in settings by name.

    Raises:
      SettingsError: two settings contradict each other.
    """
    new = {name: value for name, value in values.items() if name not in ALIASES}
    said = {name: flag(name) for name in new}
    for alias, (name, value) in ALIASES.items():
        if alias not in values:
            continue
        is_on = _of_type(bool, values[alias], alias)
        if is_on:
            new.setdefault(name, value)
            said.setdefault(name, flag(alias))
        if is_on != (new.get(name) == value):
            raise SettingsError(f"{flag(alias if is_on else 'no' + alias)} and {said[name]} exclude each other")
    return new

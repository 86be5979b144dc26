"""Every setting of a run, with the original code's defaults.

Nothing here imports TensorFlow, so that `--help` and a mistyped flag answer at once.
"""

import dataclasses
import math
import re
from typing import TYPE_CHECKING, Any

from reptile_tf.errors import as_arguments

if TYPE_CHECKING:
    from reptile_tf.problems import Problem

# Groups of settings in --help.
TASKS, INNER, OUTER = "Tasks", "Inner loop (training)", "Outer step"
EVALUATION, RUNNING = "Evaluation", "Running"
# What a setting affects. A run resumes only if all that affect its weights are as they were; the workers of a cluster
# must have alike all but those that affect a host alone.
WEIGHTS, RESULTS, HOST = "weights", "results", "host"
_AFFECTS = {TASKS: WEIGHTS, INNER: WEIGHTS, OUTER: WEIGHTS, EVALUATION: RESULTS, RUNNING: RESULTS}  # unless it says so


class SettingsError(ValueError):
    """A setting that cannot be; the message names it and says what it may be.

    Attributes:
      on_command_line: the message that names flags.
    """

    def __init__(self, message: str):
        self.on_command_line = message
        super().__init__(as_arguments(message))


# Upper bounds where more would never end or fit no memory, far above what anybody needs; elsewhere 64 bits are enough.
MOST_SAMPLES = 10**7
MOST = {int: 2**63 - 1, float: 3.4e38}  # of float32


def _setting(default: Any, group: str, help: str, choices: tuple[str, ...] | tuple[int, ...] = (), **more: Any) -> Any:
    """A field: `more` are bounds, what it affects, and whether --pretrained takes it from the checkpoint ("fixed")."""
    metadata = {"group": group, "affects": _AFFECTS[group], "fixed": False, "help": help, "choices": choices}
    metadata |= {"low": None, "high": None} | more
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The paper's hyperparameters and how to run; names, meanings and defaults are the original code's.

    Raises:
      SettingsError: a value is out of range or two settings contradict each other.
    """

    # fmt: off
    source: str = _setting("raw", TASKS, "source of the images: raw, the files in --data-dir; tfds, TensorFlow "
                                         "Datasets (for images of your own tfds:NAME, such as tfds:cifar10); glyphs, "
                                         "built-in drawings that need no data", fixed=True)
    seed: int = _setting(0, TASKS, "seed of the split, the initial weights and the tasks", low=0, high=2**64 - 1,
                         fixed=True)
    split: str = _setting("", TASKS, "which classes to train, validate and test on: shares, as in 64,16,20; a file of "
                                     "the names to test on, one a line; with Omniglot, background: its evaluation "
                                     "alphabets to test on (default: folders' or a table's sets, else 64,16,20; with "
                                     "Omniglot as in the paper)", fixed=True)
    classes: int = _setting(5, TASKS, "classes of a task: the N of N-way; an evaluation with --pretrained may "
                                      "have others than the training had", low=2)
    shots: int = _setting(5, TASKS, "images of each class to adapt to in evaluation (and in training, unless "
                                    "--train-shots is given)", low=1, affects=RESULTS)
    train_shots: int = _setting(0, TASKS, "images of each class in a training task (0: as many as --shots)", low=0)
    size: int = _setting(84, TASKS, "height and width that images are resized to", low=8, high=1024, fixed=True)
    channels: int = _setting(3, TASKS, "3: images are in colour; 1: in grey", choices=(1, 3), low=1, fixed=True)
    rotations: bool = _setting(False, TASKS, "each training class turned by 90, 180 and 270 degrees is a class of its "
                                             "own, as in the paper's Omniglot", fixed=True)
    flips: bool = _setting(False, TASKS, "training classes hold their images mirrored, too", fixed=True)
    filters: int = _setting(64, TASKS, "channels of each convolution", low=1, high=1024, fixed=True)

    inner_batch: int = _setting(5, INNER, "samples per minibatch", low=1)
    inner_iters: int = _setting(20, INNER, "optimizer steps per task, k (k = 1 with Reptile is joint training)", low=1)
    replacement: bool = _setting(False, INNER, "draw each minibatch independently instead of dealing out the shuffled "
                                               "task", fixed=True)
    learning_rate: float = _setting(1e-3, INNER, "learning rate of the inner optimizer", low=0, fixed=True)
    inner_optimizer: str = _setting("adam", INNER, "optimizer of the inner loop; adam has beta_1 = 0, as in the paper",
                                    choices=("adam", "sgd"), fixed=True)
    weight_decay: float = _setting(1.0, INNER, "factor on all weights before every step (1: none)", low=0, fixed=True)
    algorithm: str = _setting(None, INNER, "the meta-gradient: reptile (the default); foml, first-order MAML; maml, "
                                           "with second derivatives: the last of the --inner-iters minibatches is "
                                           "the query set, the others are steps of SGD (needs --inner-optimizer sgd); "
                                           "partial-sum, the inner gradients that --gradients names",
                              choices=("reptile", "foml", "maml", "partial-sum"))
    gradients: str = _setting("", INNER, "numbers of the inner gradients in a partial sum, as in 1,2 (all k of them: "
                                         "Reptile; k alone: first-order MAML)")
    foml_tail: int = _setting(0, INNER, "with foml or maml: images of each class set aside for the last minibatch "
                                        "(0: it is dealt like the others)", low=0)
    sequential: bool = _setting(False, INNER, "run the tasks of a meta-batch one after another and pass Adam's state "
                                              "on, as the original does; by default they run side by side and their "
                                              "states are averaged")

    meta_step: float = _setting(None, OUTER, "first outer step size (default 0.1; with --meta-optimizer adam its "
                                             "learning rate, 0.001)", low=0)
    meta_step_final: float = _setting(None, OUTER, "last outer step size, reached linearly (default 0.1; with "
                                                   "--meta-optimizer adam the same as --meta-step)", low=0)
    meta_batch: int = _setting(1, OUTER, "tasks per meta-iteration", low=1, high=10_000)
    meta_iters: int = _setting(400_000, OUTER, "number of meta-iterations", low=1, high=10**9)
    meta_optimizer: str = _setting("sgd", OUTER, "optimizer of the outer step; sgd is the paper's interpolation",
                                   choices=("sgd", "adam"))

    transductive: bool = _setting(False, EVALUATION, "classify all queries of a task in one batch, instead of each in "
                                                     "a batch with the support set")
    eval_batch: int = _setting(5, EVALUATION, "samples per minibatch in evaluation", low=1)
    eval_iters: int = _setting(50, EVALUATION, "optimizer steps per task in evaluation", low=0)
    eval_samples: int = _setting(10_000, EVALUATION, "tasks in the final evaluation, for each set of classes", low=2,
                                high=10**6)
    eval_interval: int = _setting(100, EVALUATION, "meta-iterations between validations on held-out classes",
                                  low=1)
    eval_tasks: int = _setting(8, EVALUATION, "tasks per validation", low=1, high=10**6)

    checkpoint: str = _setting("model_checkpoint", RUNNING, "folder of the run: checkpoints, results, pictures",
                               affects=HOST)
    init_from: str = _setting("", RUNNING, "folder of a finished run whose weights to start from (default: random "
                                           "ones)", affects=WEIGHTS)
    pretrained: bool = _setting(False, RUNNING, "evaluate the network in --checkpoint instead of training")
    data_dir: str = _setting("", RUNNING, "folder of the images (default: the data set's in data/; with tfds, its own)",
                             affects=HOST)
    skip_bad_images: bool = _setting(False, RUNNING, "leave out files that are not images, instead of stopping",
                                     affects=HOST)
    save_interval: int = _setting(1000, RUNNING, "meta-iterations between checkpoints", low=1)
    mode: str = _setting("auto", RUNNING, "how tasks run side by side: branches, each on a core of the CPU; stacked, "
                                          "in one XLA program; auto: stacked on a GPU, otherwise branches",
                         choices=("auto", "branches", "stacked"))
    device: str = _setting("auto", RUNNING, "where to run; auto: on a GPU if TensorFlow can use one, otherwise on the "
                                            "CPU; gpu: stop if it cannot", choices=("auto", "cpu", "gpu"))
    tf32: bool = _setting(False, RUNNING, "let a GPU round the factors of matrix products to TensorFloat-32: faster, "
                                          "but less exact")
    # fmt: on

    def __post_init__(self):
        # Interpolation goes 0.1 to all of the way to W; as the rate of Adam that would throw phi far off.
        is_adam = self.meta_optimizer == "adam"
        first = (0.001 if is_adam else 0.1) if self.meta_step is None else self.meta_step
        object.__setattr__(self, "meta_step", first)
        if self.meta_step_final is None:
            object.__setattr__(self, "meta_step_final", first if is_adam else 0.1)
        if self.algorithm is None:
            object.__setattr__(self, "algorithm", "partial-sum" if self.gradients else "reptile")
        for field in dataclasses.fields(self):
            kind: Any = field.type  # a class, since annotations are evaluated here
            value = _of_type(kind, getattr(self, field.name), field.name)
            object.__setattr__(self, field.name, value)  # the dataclass is frozen
            low, high, choices = (field.metadata[name] for name in ("low", "high", "choices"))
            high = high or MOST.get(kind)
            if low is not None and value > high:  # which may have more digits than Python prints
                raise SettingsError(f"{flag(field.name)} must be at most {high}")
            if low is not None and not value >= low:  # nan is not
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
            raise SettingsError("--gradients and --algorithm partial-sum need each other")
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
                "(--train-shots, else --shots) for the other steps"
            )
        if self.replacement and self.inner_batch > self.classes * (self.images_per_class - self.foml_tail):
            raise SettingsError(
                f"with --replacement a minibatch (--inner-batch {self.inner_batch}) cannot be larger than the task "
                f"({self.classes} classes x {self.images_per_class - self.foml_tail} images)"
            )
        if self.replacement and self.eval_batch > self.classes * self.shots:
            raise SettingsError(
                f"with --replacement --eval-batch {self.eval_batch} cannot be larger than the support set "
                f"({self.classes} classes x {self.shots} images)"
            )

    @property
    def images_per_class(self) -> int:
        """Images of each class of a training task."""
        return self.train_shots or self.shots

    @property
    def last_minibatch_apart(self) -> bool:
        """Whether a task's last minibatch is treated apart: it alone counts, or is the query set."""
        return self.algorithm in ("foml", "maml")

    @property
    def inner_gradients(self) -> set[int]:
        """The numbers in `gradients`; 0 stands for what is none."""
        return {int(part) if re.fullmatch(r"\s*\d{1,9}\s*", part) else 0 for part in self.gradients.split(",")}

    def training_arguments(self) -> dict[str, Any]:
        """The arguments of `tasks.training_tasks` that do not change in a run."""
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
        """The arguments of `tasks.evaluation_tasks` that do not change in an evaluation."""
        return {
            "way": self.classes,
            "shots": self.shots,
            "batch": self.eval_batch,
            "steps": self.eval_iters,
            "replacement": self.replacement,
            "seed": self.seed,
        }

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "Settings":
        """A problem's setting of a name, with changes.

        Raises:
          SettingsError: there is none, or as for the class itself.
        """
        from reptile_tf import problems  # which are made of settings

        known = {preset: problem for problem in map(problems.find, problems.names()) for preset in problem.presets}
        if name not in known:
            raise SettingsError(f"unknown preset {name!r}; there are: {', '.join(known)}")
        return cls.of(known[name], name, **changes)

    @classmethod
    def of(cls, problem: "Problem", preset: str = "", **changes: Any) -> "Settings":
        """A problem's defaults or one of its presets, with changes; raises SettingsError as the class itself."""
        values = problem.defaults | problem.presets.get(preset, {})
        if changes.get("meta_optimizer") == "adam":  # the preset's steps are for interpolation
            values = {name: value for name, value in values.items() if not name.startswith("meta_step")}
        return cls(**(values | changes))

    def determining_weights(self) -> dict[str, Any]:
        """The settings that a trained network depends on, by name; `shots` only where training uses it."""
        chosen = {name: getattr(self, name) for name in names_of(affects=WEIGHTS)}
        return chosen | {"train_shots": self.images_per_class}

    def determining_results(self) -> dict[str, Any]:
        """The settings that all workers of a run must have alike: all but those of a host."""
        of_a_host = names_of(affects=HOST)
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in of_a_host}

    def schedule(self, iteration: int) -> float:
        """The outer step size of a meta-iteration, counted from 0: linear, as eps_i in the original code."""
        done = iteration / self.meta_iters
        return done * self.meta_step_final + (1 - done) * self.meta_step


def _of_type(wanted: type, value: Any, name: str) -> Any:
    """A setting's value as its type: whole numbers may be written as floats, and NumPy's numbers are as good."""
    if hasattr(value, "item") and not isinstance(value, str):  # NumPy's
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
    """The names of the settings whose metadata have these values, such as `fixed=True`."""
    fields = dataclasses.fields(Settings)
    return [f.name for f in fields if all(f.metadata[key] == value for key, value in metadata.items())]


def flag(name: str) -> str:
    """How a setting is written on the command line."""
    return "--" + name.replace("_", "-")


# The original's flags, and earlier names, that are a value of a setting now.
ALIASES: dict[str, tuple[str, Any]] = {
    "foml": ("algorithm", "foml"),
    "maml": ("algorithm", "maml"),
    "sgd": ("inner_optimizer", "sgd"),
    "in_turn": ("sequential", True),
}


def renamed(values: dict[str, Any]) -> dict[str, Any]:
    """Settings by name, as an earlier version or a command line has them, by today's names.

    Raises:
      SettingsError: two of them contradict each other.
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

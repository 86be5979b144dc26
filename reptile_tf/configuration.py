"""The configuration of a run (config.json in its folder): the problem, settings, network, images and split."""

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from reptile_tf import files, origin, problems
from reptile_tf.errors import UserError
from reptile_tf.origin import Origin
from reptile_tf.progress import log
from reptile_tf.settings import ALIASES, Settings, SettingsError, flag, renamed

if TYPE_CHECKING:
    import keras

    from reptile_tf.data import ImageClasses
    from reptile_tf.meta import MetaLearner
    from reptile_tf.network import Loss

EVALUATION = ("shots", "transductive", "eval_batch", "eval_iters")
# Keys of the network's JSON that may differ between equal networks: object ids, and how a nested model was compiled.
_NOT_THE_NETWORKS = ("shared_object_id", "compile_config")


def of_run(
    problem: problems.Problem | None,
    settings: Settings,
    model: "keras.Model",
    images: "ImageClasses | None",
    split: dict[str, "ImageClasses"],
    loss: "Loss | None" = None,
) -> dict[str, Any]:
    """Returns the configuration of a new run.

    Args:
      problem: the problem to learn; None if a program calls `meta_train`.
      settings: settings of the run.
      model: the model to train. If Keras cannot serialize it, its description is None.
      images: all images, or the training images; None if a sampler draws the tasks.
      split: sets of classes by name.
      loss: the loss; None for the default.
    """
    from reptile_tf import device

    kept = {name: getattr(settings, name) for name in EVALUATION}
    lacking = problem.lacks if problem else ()
    preparation: dict[str, Any] = {"scale": 1.0}
    if images is not None:
        shape = [int(axis) for axis in images.images.shape[1:]]
        preparation = {"shape": shape, "dtype": str(images.images.dtype), "scale": images.scale}
    if problem:
        preparation["resampling"] = problem.resampling
    return {
        "problem": problem.name if problem else "library",
        "settings": {name: value for name, value in settings.determining_weights().items() if name not in lacking},
        "evaluation": kept,
        "images": preparation,
        "loss": _name_of(loss),
        "pixels": origin.pixels(images),
        **_network(model),
        "onednn": device.onednn(),
        "split": {part: list(classes.names) for part, classes in split.items()},
    }


def of_learner(learner: "MetaLearner") -> dict[str, Any]:
    """Returns the configuration of a learner that was constructed without settings.

    Raises:
      ValueError: the loss or the meta-gradient is custom, and cannot be described as text; or the model or an
        optimizer was changed since.
    """
    import keras

    from reptile_tf.inner_loop import excluded_from_decay
    from reptile_tf.meta_gradients import BY_NAME
    from reptile_tf.network import cross_entropy

    learner.network.as_made.check()
    excluded = excluded_from_decay(learner.inner_optimizer, learner.network.trainable)
    algorithm = next((name for name, function in BY_NAME.items() if function is learner.meta_gradient), None)
    if learner.network.loss is not cross_entropy or algorithm is None:
        raise ValueError(
            "a learner with a custom loss or meta-gradient cannot be saved as a whole: save learner.state() (NumPy "
            "arrays by name), construct the learner again, and call its restore() with them"
        )
    return {
        "problem": "library",
        "settings": {},
        "learner": {
            "inner_optimizer": keras.optimizers.serialize(learner.inner_optimizer),
            "outer_optimizer": keras.optimizers.serialize(learner.outer_optimizer),
            "meta_gradient": algorithm,
            "meta_batch": learner.meta_batch,
            "sequential": learner.sequential,
            "weight_decay": learner.weight_decay,
        }
        | ({"excluded_from_decay": excluded} if excluded else {}),
        "images": {"scale": learner.network.scale},
        "evaluation": learner.origin.evaluation(),
        "pixels": learner.origin.pixels(),
        **_network(learner.model),
        "split": {},
    }


def parsed(text: str) -> dict[str, Any]:
    """Reads a configuration from a text made by `files.sealed`, and renames settings of earlier versions.

    Raises:
      ValueError: the text is damaged, or not a configuration.
    """
    config = files.unsealed(text)
    if "benchmark" in config:
        config["problem"] = config.pop("benchmark")
    if missing := {"problem", "settings", "split"} - config.keys():
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    if isinstance(config["settings"], dict):
        config["settings"] = todays_settings(config["settings"])
    return config


def todays_settings(recorded: dict[str, Any]) -> dict[str, Any]:
    """Renames recorded settings of an earlier version; raises SettingsError if they contradict each other."""
    if not ALIASES.keys() & recorded.keys():
        return recorded
    algorithm = "partial-sum" if recorded.get("gradients") else "reptile"
    return {"algorithm": algorithm, "inner_optimizer": "adam", "sequential": False} | renamed(recorded)


def begun_with(theirs: dict[str, Any], onednn: str) -> str:
    """What a run began with of oneDNN, "1" or "0", or `onednn` if it does not say; a log line says if they differ."""
    began = theirs.get("onednn", onednn)
    if began != onednn:
        log.warning(
            f"this run began with TF_ENABLE_ONEDNN_OPTS={began}, and {onednn} is set now: the last bits of its results "
            "will differ"
        )
    return began


def differences(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """Returns one phrase per difference between two configurations. Items missing from one of them do not count."""
    if theirs["problem"] != ours["problem"]:
        return [f"{theirs['problem']} there, {ours['problem']} here"]
    defaults = dataclasses.asdict(Settings()) | _defaults(theirs)  # for settings that are newer than the run
    names = sorted(theirs["settings"].keys() | ours["settings"].keys())
    pairs = {name: tuple(c["settings"].get(name, defaults.get(name)) for c in (theirs, ours)) for name in names}
    differing = [f"{flag(name)} {a} there, {b} here" for name, (a, b) in pairs.items() if a != b]
    if "images" in theirs:
        pairs = {name: (theirs["images"].get(name), value) for name, value in ours["images"].items()}
        differing += [f"images of {name} {a} there, {b} here" for name, (a, b) in pairs.items() if a != b]
    if theirs.get("learner") != ours.get("learner"):
        differing.append("the run's learner has other optimizers or options than this one")
    if (there := theirs.get("loss")) != (here := ours.get("loss")):
        differing.append(f"loss {there or 'cross_entropy'} there, {here or 'cross_entropy'} here")
    differing += _other_network(theirs, ours)
    if not differing and theirs["split"] != ours["split"]:
        differing = ["the run's images are of other classes than these"]
    return differing


def settings_of(config: dict[str, Any]) -> Settings:
    """Returns the settings, including those of the evaluation; raises UserError if this version does not know one."""
    evaluation = config.get("evaluation", {"eval_batch": 5, "eval_iters": 50})  # earlier versions record none
    try:
        return Settings(**(_defaults(config) | config["settings"] | evaluation))
    except (SettingsError, TypeError) as error:
        raise UserError(f"the run has settings that this version does not know: {error}") from error


def _defaults(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the defaults of the run's problem."""
    try:
        return problems.find(config["problem"]).defaults
    except KeyError:
        return {}


def scale_of(config: dict[str, Any]) -> float:
    """Returns the factor by which pixels are multiplied."""
    if "images" in config:
        return config["images"]["scale"]
    return 1 / 255 if config["problem"] == "miniimagenet" else 1.0  # earlier versions do not record it


def loss_of(config: dict[str, Any], loss: "Loss | None") -> "Loss":
    """Returns the given loss, or the default, if its name is that of the run's loss.

    Raises:
      UserError: the run has another loss.
    """
    from reptile_tf.network import cross_entropy

    theirs = config.get("loss")
    if _name_of(loss) != theirs:
        raise UserError(
            f"the run's loss is {theirs}: give it as load(folder, loss={theirs})"
            if theirs
            else f"the run's loss is the default, cross_entropy, not {_name_of(loss)}: leave loss out"
        )
    return loss or cross_entropy


def _name_of(loss: "Loss | None") -> str | None:
    """Returns the name of a loss as recorded in a folder; None for the default."""
    from reptile_tf.network import cross_entropy

    return None if loss in (None, cross_entropy) else getattr(loss, "__name__", type(loss).__name__)


def origin_of(config: dict[str, Any]) -> Origin:
    """Returns how the run adapts to new tasks, and how its images were prepared."""
    pixels = config.get("pixels")
    if pixels is None:  # earlier versions do not record it
        kinds = {"omniglot": {"white": 1, "paper": 1}, "miniimagenet": {"white": 255}}
        pixels = kinds.get(config["problem"], {})
    if "learner" in config:
        evaluation = config.get("evaluation", Origin().evaluation())
        names = zip(("steps", "batch", "replacement"), ("eval_iters", "eval_batch", "replacement"), strict=True)
        return Origin(**{ours: evaluation[theirs] for ours, theirs in names}, **pixels)
    return Origin.of_run(settings_of(config), pixels)


def network_of(config: dict[str, Any], model: "keras.Model | None" = None) -> "keras.Model":
    """Returns a new model with the run's architecture and untrained weights, or the given one if it has the same.

    Raises:
      UserError: the given model has other layers; or neither this version nor Keras can build the model safely.
    """
    import keras

    if model is not None:
        if other := _other_network(config, _network(model)):
            raise UserError(other[0])
        return model
    if network := config.get("network"):
        try:
            return keras.saving.deserialize_keras_object(network)
        except Exception as error:  # a user's layers may raise anything; safe_mode refuses to run stored code
            raise UserError(
                f"Keras cannot rebuild the run's network ({next(iter(str(error).splitlines()), error)}): build it "
                "yourself and give it as load(folder, model=…)"
            ) from error
    try:
        return problems.find(config["problem"]).network(settings_of(config))
    except KeyError as error:
        raise UserError(
            f"the run does not describe its network, and its problem, {config['problem']!r}, is unknown: give the "
            "network as load(folder, model=…)"
        ) from error


def _network(model: "keras.Model") -> dict[str, Any]:
    """Returns Keras's description of a model, or None if it cannot be described, and Keras's version."""
    import keras

    try:
        described = keras.saving.serialize_keras_object(model)
        described.pop("compile_config", None)
        described = json.loads(json.dumps(described))
    except Exception:  # a user's get_config may raise anything, or return values that JSON cannot hold
        described = None
    return {"network": described, "keras": keras.__version__}


def _other_network(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """Returns one phrase if both configurations describe their networks, and the networks differ."""
    networks = [config.get("network") for config in (theirs, ours)]
    same_keras = theirs.get("keras") == ours.get("keras")  # other versions may describe the same network differently
    if same_keras and all(networks) and _comparable(networks[0]) != _comparable(networks[1]):
        return ["the run's network has other layers than this one"]
    return []


def _comparable(network: Any) -> Any:
    """Returns a network's description without anything that may differ between equal networks.

    Layer names become numbers, because Keras's default names depend on which other layers a process has made. The code
    of lambdas is left out, because it contains their position in a file.
    """
    numbers: dict[str, int] = {}

    def collect(part: Any) -> None:
        if isinstance(part, dict):
            if isinstance(part.get("config"), dict) and isinstance(part["config"].get("name"), str):
                numbers.setdefault(part["config"]["name"], len(numbers))
            for value in part.values():
                collect(value)
        elif isinstance(part, list):
            for value in part:
                collect(value)

    def number(part: Any) -> Any:
        return numbers.get(part, part) if isinstance(part, str) else replaced(part)

    def replaced(part: Any) -> Any:
        if isinstance(part, dict):
            if part.get("class_name") == "__lambda__":
                return "a lambda"
            kept = {key: value for key, value in part.items() if key not in _NOT_THE_NETWORKS}
            # Under other keys a string may equal a layer's name by chance, as that of an activation does.
            return {key: number(value) if key == "name" else replaced(value) for key, value in kept.items()}
        return [number(value) for value in part] if isinstance(part, list) else part

    collect(network)
    return replaced(network)

"""Tests of the package as pip builds and installs it, from the files that git tracks, outside the checkout."""

import ast
import os
import pathlib
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile

import pytest

import reptile_tf

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = sorted(path.relative_to(ROOT) for path in (ROOT / "reptile_tf").rglob("*.py"))
COMMANDS = ("classify", "fetch", "launch", "tfjs")
TRAINING = ["--source=glyphs", "--filters=4", "--meta-iters=2", "--eval-samples=2", "--eval-iters=1", "--eval-tasks=1"]
# Imports everything, by the names in the documentation and module by module.
IMPORTS = """
import importlib, pathlib, pkgutil, sys
import reptile_tf
assert pathlib.Path(sys.prefix) in pathlib.Path(reptile_tf.__file__).parents, reptile_tf.__file__
for name in reptile_tf.__all__:
    getattr(reptile_tf, name)
for module in pkgutil.walk_packages(reptile_tf.__path__, "reptile_tf."):
    importlib.import_module(module.name)
    print(module.name)
"""


def test_type_checkers_see_the_public_names_that_a_program_gets():
    tree = ast.parse(pathlib.Path(reptile_tf.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    homes = {
        alias.asname: node.module.removeprefix("reptile_tf").removeprefix(".")
        for node in block.body
        for alias in node.names
        if alias.asname == alias.name  # otherwise it is not one of the package's names
    }
    assert homes == reptile_tf._HOMES | dict.fromkeys(reptile_tf._MODULES, "")
    assert sorted(homes) == reptile_tf.__all__


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the tracked files only, like a fresh checkout."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git checkout: which files belong to the package is not known")
    tree = tmp_path_factory.mktemp("package") / "tree"
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    return tree


def pip(python, *arguments):
    """Runs pip without the pinned versions."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PIP_CONSTRAINT", "PYTHONPATH")}
    command = [python, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_has_every_module_and_says_that_it_is_typed(tree, tmp_path):
    pip(sys.executable, "wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={tmp_path}", str(tree))
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")]
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        head = archive.read(metadata).decode().split("\n\n")[0].splitlines()
        assert archive.read(metadata.replace("METADATA", "licenses/LICENSE")) == (ROOT / "LICENSE").read_bytes()
    assert sorted(names) == sorted([*map(str, PACKAGE), "reptile_tf/py.typed"])
    assert {f"Version: {reptile_tf.__version__}", "Requires-Python: >=3.11", "License-Expression: MIT"} <= set(head)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [line.removeprefix("Requires-Dist: ") for line in head if line.startswith("Requires-Dist: ")]
    assert sorted(line for line in needed if "extra ==" not in line) == sorted(project["dependencies"])


@pytest.mark.slow
def test_pip_installs_it_into_an_empty_environment_without_the_pins(tree, tmp_path):
    """This needs the network or pip's cache."""
    venv.create(tmp_path / "empty", with_pip=True)
    python = tmp_path / "empty" / "bin" / "python"
    pip(python, "install", "--quiet", "--no-compile", str(tree))  # modules are compiled on import
    pip(python, "check")
    for script in ("run_omniglot.py", "run_miniimagenet.py"):
        shutil.copy(tree / script, tmp_path)

    def run(*arguments, code=0):
        ours = "PYTHONPATH", "DATA_DIR", "XLA_FLAGS"  # flags that its TensorFlow may not know
        environment = {name: value for name, value in os.environ.items() if name not in ours}
        environment["OMNIGLOT_URL"] = "file:///nowhere"
        done = subprocess.run(
            [python, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        return done.stdout

    imported = {line for line in run("-c", IMPORTS).splitlines() if line.startswith("reptile_tf.")}
    assert imported == {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in PACKAGE} - {
        "reptile_tf"
    }
    for command in (["run_omniglot.py"], ["run_miniimagenet.py"], *(["-m", f"reptile_tf.{m}"] for m in COMMANDS)):
        assert run(*command, "--help").strip(), command
    run("-m", "reptile_tf.fetch", "omniglot", code=1)
    assert (tmp_path / "data").is_dir()  # data sets go into the current folder, not into site-packages
    run("run_omniglot.py", *TRAINING)
    assert f'"reptile-tf": "{reptile_tf.__version__}"' in (tmp_path / "model_checkpoint" / "results.json").read_text()

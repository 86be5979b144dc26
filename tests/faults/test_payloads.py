"""Tests that no kind of file that is loaded can run code, with a payload planted in each."""

import ast
import hashlib
import io
import json
import pathlib
import pickle
import shutil
import zipfile

import common
import keras
import numpy as np
import pytest
from PIL import Image
from tools import trained

import reptile_tf as rt
from reptile_tf import files
from reptile_tf.data import miniimagenet
from reptile_tf.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent.parent


class Payload:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def harm(tmp_path):
    """The file that a payload would create."""
    return tmp_path / "harm"


@pytest.fixture
def pickled(harm):
    """Returns a pickled array with a working payload."""
    array = np.empty(1, object)
    array[0] = Payload(str(harm))
    pickle.loads(pickle.dumps(array))[0].close()
    assert harm.exists()
    harm.unlink()
    return array


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def run(finished, tmp_path):
    """The folder of a finished run."""
    return shutil.copytree(finished, tmp_path / "run")


def test_a_checkpoint(run, pickled, harm):
    """The checkpoint has a correct checksum and is newer than the others."""
    content = io.BytesIO()
    np.savez(
        content,
        iteration=99,
        seconds=0.0,
        history=np.zeros([0, 3]),
        config=np.zeros(0, np.uint8),
        **{"state/phi": pickled},
    )
    with zipfile.ZipFile(content, "a") as archive:
        archive.comment = bytes(64)
    body = content.getvalue()[:-64]
    (run / "checkpoint-0000099.npz").write_bytes(body + hashlib.sha256(body).hexdigest().encode())
    assert rt.RunFolder(run).load().iteration == 40
    rt.load(run)
    assert not harm.exists()


def test_a_checkpoint_that_is_a_bare_pickle(run, pickled, harm):
    content = pickle.dumps(pickled)
    (run / "checkpoint-0000099.npz").write_bytes(content + hashlib.sha256(content).hexdigest().encode())
    rt.load(run)
    assert not harm.exists()


def test_the_store_of_prepared_images(tmp_path, pickled, harm):
    for number, part in enumerate(miniimagenet.SETS):
        folder = tmp_path / "photographs" / part / f"n{number}"
        folder.mkdir(parents=True)
        Image.fromarray(np.full([9, 9, 3], number, np.uint8)).save(folder / "0.png")
    expected = miniimagenet.load(tmp_path / "photographs").images.copy()
    (store,) = (tmp_path / "photographs").glob("*.npy")
    for content in (pickle.dumps(pickled), _npy(pickled)):
        store.write_bytes(content)
        np.testing.assert_array_equal(miniimagenet.load(tmp_path / "photographs").images, expected)
        (tmp_path / "photographs" / "prepared-84.json").write_bytes(content)
        np.testing.assert_array_equal(miniimagenet.load(tmp_path / "photographs").images, expected)
    assert not harm.exists()


def _npy(array):
    content = io.BytesIO()
    np.save(content, array, allow_pickle=True)
    return content.getvalue()


def test_a_model(run, harm):
    """Keras unpickles a Lambda layer's code only without safe mode. The package never loads a run's model.keras."""
    keras.models.load_model(run / "model.keras")  # the original file loads in safe mode
    path = str(harm)
    layer = keras.layers.Lambda(lambda x: (__import__("pathlib").Path(path).touch(), x)[1])
    evil = keras.Sequential([keras.layers.Input((28, 28, 1)), layer])
    harm.unlink(missing_ok=True)
    evil.save(run / "model.keras")
    with pytest.raises(ValueError, match="Lambda"):
        keras.models.load_model(run / "model.keras")
    rt.load(run)
    assert not harm.exists()
    keras.models.load_model(run / "model.keras", safe_mode=False)(np.zeros([1, 28, 28, 1]))
    assert harm.exists()  # the payload works


def test_results_and_configuration(run, pickled, harm, monkeypatch):
    for content in (pickle.dumps(pickled), json.dumps({"py/object": "os.system", "settings": 3}).encode()):
        (run / "results.json").write_bytes(content)
        with pytest.raises(UserError, match=r"cannot read .*results.json"):
            common._run(run.parent, "run", ["--source=glyphs"])
        (run / "config.json").write_bytes(content)
        rt.load(run)  # from the copy in a checkpoint
    evil = files.sealed({"problem": "omniglot", "settings": {"source": "__import__('os')"}, "split": {}})
    (run / "config.json").write_text(evil)
    with pytest.raises(UserError, match="does not know"):
        rt.load(run)
    assert not harm.exists()


# Functions that run code from data, by name, wherever they are imported from.
NEVER = {"eval", "exec", "compile", "__import__", "loads", "Unpickler", "unsafe_load", "enable_unsafe_deserialization"}
MODULES = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib", "yaml"}
SOURCES = [
    *ROOT.glob("*.py"), *(ROOT / "reptile_tf").rglob("*.py"), *(ROOT / "experiments").glob("*.py"),
    *(ROOT / "benchmarks").glob("*.py"),
]  # fmt: skip


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_here_can_run_what_it_loads(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name.split(".")[0] for alias in node.names] + [getattr(node, "module", None)]
            assert not MODULES & set(names), ast.unparse(node)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            name = called.rpartition(".")[2]
            harmless = called in ("json.loads", "torch.compile") or called.startswith("re.")
            assert harmless or name not in NEVER, ast.unparse(node)
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert options.get("allow_pickle", "False") == "False", ast.unparse(node)
            assert options.get("safe_mode", "True") == "True", ast.unparse(node)
            if called == "np.load":
                assert "allow_pickle" in options, ast.unparse(node)

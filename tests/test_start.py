"""What a run waits for before it begins."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
# Besides what TensorFlow and Keras import by themselves.
LATE = ("matplotlib", "tensorflow_datasets", "tensorboard", "scipy", "pandas", "pyarrow", "torch", "urllib3")
PROGRAM = """
import sys
from reptile_tf import backend
backend.import_quietly()
print(*sys.modules.keys() & {"keras", "matplotlib", "IPython"})
known = set(sys.modules)
from reptile_tf import run
print(*sorted(set(sys.modules) - known))
"""


def printed(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_run_imports_little_besides_tensorflow_and_keras():
    by_keras, *imported = printed(PROGRAM)
    assert by_keras == "keras"  # and neither of the other two
    assert "reptile_tf.run" in imported
    assert [name for name in imported if name.startswith(LATE)] == []
    packages = {name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names)
    assert {name for name in packages if not name.startswith("_")} <= {"reptile_tf", "numpy", "tqdm", "PIL"}


def test_help_imports_neither_numpy_nor_tensorflow():
    program = "import sys; sys.argv = ['run_omniglot.py', '--help']\nimport runpy\ntry:\n    "
    program += "runpy.run_path('run_omniglot.py', run_name='__main__')\nfinally:\n    "
    program += "print('\\nmodules', *sorted(sys.modules))"
    words = printed(program)
    modules = words[words.index("modules") + 1 :]
    assert "reptile_tf.flags" in modules
    assert not {"numpy", "tensorflow", "keras", "matplotlib", "PIL"} & set(modules)

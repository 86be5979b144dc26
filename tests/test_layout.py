"""Tests that imports have no cycles, and that fetching data needs only the standard library."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "reptile_tf").rglob("*.py")
}
# The modules outside a subpackage that it may import.
TAKES = {
    "fetch": set(),
    "data": {"fetch", "errors", "files", "progress"},
    "distributed": {"errors", "progress"},
    "problems": {"data", "errors", "fetch", "models", "settings"},
}


def imported(name, body):
    """Yields the modules of this package that these statements import, except those only for type checkers."""
    for node in body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "reptile_tf":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module
        elif isinstance(node, ast.Try):
            yield from imported(name, node.body)


def tree(name):
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def test_no_module_needs_itself():
    needs = {name: set(imported(name, tree(name).body)) - {name} for name in MODULES}
    assert sum(map(len, needs.values())) > 60
    order = list(graphlib.TopologicalSorter(needs).static_order())  # raises CycleError
    assert order.index("reptile_tf.meta") < order.index("reptile_tf.train") < order.index("reptile_tf.run")


@pytest.mark.parametrize("wing", TAKES)
def test_a_wing_takes_little_from_outside(wing):
    own = [name for name in MODULES if name.startswith(f"reptile_tf.{wing}")]
    assert len(own) > 2
    found = set()
    for name in own:
        everywhere = [node for node in ast.walk(tree(name)) if isinstance(node, ast.ImportFrom)]
        found |= {module.split(".")[1] for module in imported(name, everywhere) if module != "reptile_tf"}
    assert found - {wing} <= TAKES[wing]


def test_getting_data_needs_nothing_but_python():
    for name in (name for name in MODULES if name.startswith("reptile_tf.fetch")):
        for node in ast.walk(tree(name)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {each.split(".")[0] for each in names} <= sys.stdlib_module_names | {"reptile_tf"}, name
    command = [sys.executable, "-S", "-E", "-s", "reptile_tf/fetch/__main__.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "omniglot" in done.stdout

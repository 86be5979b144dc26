"""Runs the demo's own tests in Node and Chromium; needs demo/node_modules (`npm ci` there) and CHROMIUM."""

import json
import os
import pathlib
import socket
import subprocess

import numpy as np
import pytest
import waiting
from conftest import DEMO, in_node

import reptile_tf
from reptile_tf import heads, tfjs

pytestmark = pytest.mark.slow
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
PAGES = ("page.test.js", "devices.test.js")


def node(*arguments):
    return subprocess.run(
        ["node", *arguments], cwd=DEMO, capture_output=True, text=True, timeout=waiting.LIMIT, check=False
    )


@pytest.fixture(scope="module")
def built():
    done = node("build.js")
    assert done.returncode == 0, done.stderr  # also fails if the page exceeds its size limit
    return done.stdout


@in_node
@pytest.mark.parametrize("file", sorted(path.name for path in (DEMO / "test").glob("*.test.js")))
def test_the_demos_own(file, built):
    if file in PAGES and not pathlib.Path(CHROMIUM).exists():
        pytest.skip("needs Chromium: /usr/bin/chromium, or CHROMIUM")
    done = node("--test", f"test/{file}")
    assert done.returncode == 0, done.stdout


@in_node
def test_twelve_classes_start_from_the_same_outputs_as_in_keras(tmp_path, monkeypatch):
    program = """
        import { MODEL, bundledCore, readingFrom } from './test/core.js';
        const core = await bundledCore();
        await core.startBackend();
        const learner = await core.Learner.create(await core.readArtifact(readingFrom(MODEL)), 12);
        const { names, weights, moments } = learner;
        const both = names.map((name, i) => [name, [Array.from(weights[i]), Array.from(moments[i])]]);
        process.stdout.write(JSON.stringify(Object.fromEntries(both)));
    """
    learner = reptile_tf.load(DEMO.parent / "pretrained" / "omniglot-5way")
    tfjs.export(learner, tmp_path)
    monkeypatch.setenv("DEMO_MODEL", str(tmp_path))
    done = node("--input-type=module", "--eval", program)
    assert done.returncode == 0, done.stderr
    wider = heads.with_outputs(learner, 12)
    second_moments = next(v for v in reversed(wider.inner_state) if v.shape.rank)
    arrays = [wider.network.unflatten(flat) for flat in (wider.phi, second_moments)]
    ours = {"/".join(v.path.split("/")[-2:]): a for v, *a in zip(wider.network.trainable, *arrays, strict=True)}
    theirs = json.loads(done.stdout)  # without the biases before batch norms
    assert len(theirs["logits/bias"][0]) == 12
    for name, pair in theirs.items():
        for one, other in zip(ours[name], pair, strict=True):
            np.testing.assert_allclose(one.numpy().ravel(), other, rtol=1e-4, atol=1e-6)


@in_node
def test_a_port_in_use_is_named(built):
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        done = node("serve.js", str(port))
    assert done.returncode == 1
    assert done.stderr == f"port {port} is in use: choose another, make demo PORT={port + 1}\n"


def test_the_lockfile_names_no_registry():
    assert "resolved" not in (DEMO / "package-lock.json").read_text()

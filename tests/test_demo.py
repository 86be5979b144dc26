"""The demo's own tests, in Node and Chromium; they need demo/node_modules (`npm ci` there) and CHROMIUM."""

import os
import pathlib
import socket
import subprocess

import pytest
import waiting
from conftest import DEMO, in_node

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
    assert done.returncode == 0, done.stderr  # also when the page is larger than it may be
    return done.stdout


@in_node
@pytest.mark.parametrize("file", sorted(path.name for path in (DEMO / "test").glob("*.test.js")))
def test_the_demos_own(file, built):
    if file in PAGES and not pathlib.Path(CHROMIUM).exists():
        pytest.skip("needs Chromium: /usr/bin/chromium, or CHROMIUM")
    done = node("--test", f"test/{file}")
    assert done.returncode == 0, done.stdout


@in_node
def test_a_port_in_use_is_named(built):
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        done = node("serve.js", str(port))
    assert done.returncode == 1
    assert done.stderr == f"port {port} is in use: choose another, make demo PORT={port + 1}\n"


def test_the_lockfile_names_no_registry():
    assert "resolved" not in (DEMO / "package-lock.json").read_text()

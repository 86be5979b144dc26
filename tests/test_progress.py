"""Tests of logging: the library logs only warnings unless a program asks for more; commands show everything."""

import logging
import subprocess
import sys

import pytest

from reptile_tf.progress import Progress, hush, log, show_progress

PROGRAM = """
from reptile_tf import progress
{}
progress.log.info("going on")
progress.log.warning("falling back")
with progress.Progress("task", 2) as bar:
    bar.advance(2)
"""


def said(asks):
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(asks)], capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def test_a_program_is_told_warnings_alone_unless_it_asks():
    assert said("") == ("", "falling back\n")
    output, error = said("progress.show_progress()")
    assert error == ""
    assert output.splitlines()[:2] == ["going on", "warning: falling back"]
    assert output.splitlines()[2].startswith("task 2/2")
    _, error = said("import logging; logging.basicConfig(level=logging.INFO)")
    assert "INFO:reptile_tf:going on" in error
    assert "task 2/2" in error


def test_a_hushed_process_shows_nothing(capsys):
    hush()
    log.warning("falling back")
    with Progress("task", 1) as bar:
        bar.advance(1)
    assert capsys.readouterr() == ("", "")
    show_progress()
    log.info("going on")
    assert capsys.readouterr().out == "going on\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_line_is_shown_in_any_encoding(encoding, monkeypatch, tmp_path):
    with open(tmp_path / "log", "w", encoding=encoding) as output:
        monkeypatch.setattr(sys, "stdout", output)
        show_progress()
        log.info("größe 多")
    text = (tmp_path / "log").read_bytes().decode(encoding)
    assert text.endswith("\\u591a\n")
    assert logging.getLogger("reptile_tf") is log


def test_a_path_that_is_no_text_can_be_written_by_any_handler(tmp_path):
    handler = logging.FileHandler(tmp_path / "log", encoding="utf-8")
    log.addHandler(handler)
    try:
        log.info("in größe\udcff, 100 %")
    finally:
        log.removeHandler(handler)
        handler.close()
    assert (tmp_path / "log").read_text(encoding="utf-8") == "in größe\\udcff, 100 %\n"

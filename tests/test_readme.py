"""The README's program, as it stands there, on a folder of images."""

import pathlib
import re

import numpy as np
from PIL import Image

README = pathlib.Path(__file__).parent.parent / "README.md"


def program():
    (found,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return found


def test_the_readmes_program_runs_in_under_twenty_lines(glyphs, tmp_path, monkeypatch, capsys):
    for index, name in enumerate(glyphs.names):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number, image in enumerate(glyphs.of_class(index)):
            Image.fromarray(255 * image[..., 0]).save(tmp_path / "photos" / name / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    text = program()
    assert len(text.splitlines()) < 20
    shorter, changes = re.subn(r"(meta_iters|eval_samples)=\d+", r"\1=20", text)
    assert changes == 2
    variables = {}
    exec(compile(shorter, str(README), "exec"), variables)
    assert re.search(r"\d\d\.\d\d ± \d+\.\d\d % \(\d+ tasks\)", capsys.readouterr().out)
    saved = variables["keras"].models.load_model("model.keras")
    trained = np.concatenate([v.numpy().ravel() for v in saved.trainable_variables])
    np.testing.assert_array_equal(trained, variables["learner"].phi.numpy())

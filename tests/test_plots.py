"""Tests of a run's figures."""

import numpy as np
import pytest
from matplotlib import image

from reptile_tf import plots


@pytest.mark.parametrize("name", ["photographs of $x^$", "photographs of 图", "photographs of \udcff"])
def test_a_data_set_may_have_any_name(tmp_path, name):
    history = np.array([[100, 1.0, 0.5], [100, 1.0, 0.75], [200, 2.0, 0.75], [200, 2.0, 1.0]])
    plots.learning_curve(tmp_path / "plain.png", history, "")
    plots.learning_curve(tmp_path / "named.png", history, name)
    plain, named = (image.imread(tmp_path / file) for file in ("plain.png", "named.png"))
    assert plain.shape == named.shape
    assert (plain != named).any()

"""rnn_core.plots: pictures are PNG files, also of runs with little or nothing to show."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from rnn_core import plots

pytest.importorskip("matplotlib")

PNG = b"\x89PNG\r\n\x1a\n"
NAN = float("nan")


def row(characters, training, validation):
    return {"characters": characters, "training_loss": training, "validation_loss": validation}


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row(10.0, 2.0, NAN)],
        [row(10.0, NAN, 2.0)],
        [row(1e6 * i, 3 - 0.01 * i, 3 - 0.009 * i if i % 10 == 0 else NAN) for i in range(200)],
    ],
)
def test_loss_curves(tmp_path, rows):
    plots.loss_curves(tmp_path / "loss.png", rows, "a title")
    assert (tmp_path / "loss.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("norms", [[[0.0, 0.0]], [[1.0]], np.geomspace(1, 1e-20, 40).reshape(1, 40), np.ones((9, 3))])
def test_gradient_flow(tmp_path, norms):
    plots.gradient_flow(tmp_path / "flow.png", {"first": np.asarray(norms), "trained": norms})
    assert (tmp_path / "flow.png").read_bytes().startswith(PNG)


def test_whether_matplotlib_is_there(monkeypatch):
    assert plots.available()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not plots.available()

"""The published voice activity model against its ONNX twin."""

import re
import runpy
from pathlib import Path

import pytest

pytestmark = pytest.mark.peers
EXAMPLE = Path(__file__).parents[2] / "examples" / "silero_vad.py"


def test_check(capsys, threads):
    """The same probabilities over ten seconds; how fast is for --check itself to say. `threads` undoes its setting."""
    runpy.run_path(str(EXAMPLE))["check"](10.0)
    last = capsys.readouterr().out.strip().splitlines()[-1]
    apart = re.search(r"probabilities within ([\d.e+-]+) of the ONNX twin", last)
    assert apart and float(apart[1]) <= 1e-4, last

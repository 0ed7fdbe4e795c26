"""What `import rnn_core` costs beside numpy, and that float32 inference loads no SciPy."""

from __future__ import annotations

import sys
import time

from benchmarks.peers.score import Bar

from . import fresh

RUNS = 10
HEAVY = ("scipy", "safetensors", "tqdm", "matplotlib")


def in_fresh_process() -> dict:
    """Seconds of the import after numpy's, and the heavy packages that an inference has loaded."""
    import numpy as np

    begin = time.perf_counter()
    import rnn_core as rc

    layer = rc.LSTM(8, 8)  # what the package loads when it is first used counts as well
    seconds = time.perf_counter() - begin
    layer(np.zeros((2, 1, 8), np.float32))
    return {"seconds": seconds, "heavy": [name for name in HEAVY if name in sys.modules]}


def check():
    answers = [fresh("startup") for _ in range(RUNS)]
    best = min(answer["seconds"] for answer in answers)
    yield Bar("start-up: import rnn_core and a first layer after numpy, ms", best * 1e3, 30, at_most=True)
    heavy = answers[0]["heavy"]
    yield Bar("start-up: heavy packages that an inference loads", len(heavy), 0, at_most=True, detail=" ".join(heavy))

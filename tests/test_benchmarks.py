"""The benchmarks' own arithmetic: operations, limits, scores. Nothing here measures time."""

import numpy as np
import pytest

from benchmarks import kernels
from benchmarks.limits import Level, Limits
from benchmarks.peers import data
from benchmarks.peers.rows import Row, geometric_mean, table
from benchmarks.peers.run import _is_settled
from benchmarks.peers.score import Bar, score

LIMITS = Limits(
    "avx512",
    1,
    100e9,
    [
        Level("L1", 32 << 10, 200e9),
        Level("L2", 1 << 20, 100e9),
        Level("L3", 16 << 20, 50e9),
        Level("memory", 1 << 62, 25e9),
    ],
)


def test_flops_count_every_product():
    assert Row("layer", "LSTM", 5, 3, 7, 11).flops() == 2 * 5 * 3 * 4 * 11 * (7 + 11)
    assert Row("layer", "GRU", 5, 3, 7, 11, L=2, D=2).flops() == 2 * 5 * 3 * 3 * 11 * 2 * ((7 + 11) + (22 + 11))
    assert Row("train", "RNN", 5, 3, 7, 11).flops() == 3 * 2 * 5 * 3 * 11 * (7 + 11)
    assert Row("ragged", "RNN", 5, 3, 7, 11).flops(tokens=9) == 3 * 2 * 9 * 11 * (7 + 11)


def test_limit_takes_the_cache_that_holds_the_weights():
    # R is 1 MiB: reading it from the second level takes longer than multiplying by it for one sequence.
    row = Row("layer", "LSTM", 100, 1, 256, 256)
    assert row.limit(LIMITS) == pytest.approx(100 * (2 * 4 * 256 * 256 / 100e9 + 4 * 4 * 256 * 256 / 100e9))
    # For 32 sequences the product takes longer.
    assert Row("layer", "LSTM", 100, 32, 256, 256).limit(LIMITS) == pytest.approx(row.flops() * 32 / 100e9)
    # One step reads W and R once, together too large for the second level.
    assert Row("layer", "LSTM", 1, 1, 256, 256).limit(LIMITS) == pytest.approx(2 * 4 * 4 * 256 * 256 / 50e9)


def test_rows_have_names_of_their_own():
    names = [row.name for row in table(False) + table(True)]
    assert len(set(names)) == len(names)


def test_the_same_data_every_time():
    row = Row("ragged", "GRU", 9, 4, 5, 6, D=2, shortest=0.25)
    first, second = data.make(row), data.make(row)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[key], second[key]) for key in first)
    assert (first["lengths"].max(axis=1) == 9).all() and first["lengths"].min() >= 2
    past = np.arange(9)[:, None] >= first["lengths"][0]
    assert not first["dy"][0][past].any()


def test_score_compares_with_the_fastest_peer():
    def engine(best):
        return {"": {"best": best, "median": best}}

    row = Row("layer", "LSTM", 100, 32, 256, 256)
    result = {"row": row.as_dict(), "threads": 1}
    result["engines"] = {"rnn_core": engine(0.01), "torch": engine(0.03), "onnxruntime": engine(0.02)}
    found = score(result, LIMITS)
    assert (found.peer, found.ratio, found.against("torch")) == ("onnxruntime", pytest.approx(2), pytest.approx(3))
    assert found.share == pytest.approx(row.limit(LIMITS) / 0.01)
    assert score(result | {"engines": {"torch": engine(1.0)}}, LIMITS) is None


def test_an_engine_is_settled_when_its_best_came_twice():
    assert not _is_settled({"best": [1.0]})
    assert not _is_settled({"best": [1.3, 1.0, 1.2]})
    assert _is_settled({"best": [1.3, 1.0, 1.01]})


def test_bars():
    assert Bar("a", 1.2, 1.1).passed and not Bar("a", 1.0, 1.1).passed
    assert Bar("a", 1.0, 1.1, at_most=True).passed and "FAIL" in str(Bar("a", 1.2, 1.1, at_most=True))
    assert geometric_mean([1, 4]) == pytest.approx(2)


@pytest.mark.skipif(not (kernels.ROOT / "src").exists(), reason="needs the sources: make wheel tests without them")
@pytest.mark.parametrize("kind", kernels.KINDS)
def test_the_kernels_run_outside_the_package(kind):
    case = next(case for case in kernels.CASES.values() if case.kind == kind)
    with kernels.Job(case, kernels.library()) as job:
        job.run()

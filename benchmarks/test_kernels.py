"""The kernels alone, on the cases of kernels.py (make bench)."""

import pytest

from benchmarks import kernels


@pytest.fixture(scope="module")
def built():
    return kernels.library()


@pytest.mark.parametrize("name", kernels.CASES)
def test_kernel(benchmark, built, name):
    case = kernels.CASES[name]
    with kernels.Job(case, built) as job:
        benchmark(job.run)
    if case.flops:
        benchmark.extra_info["gflops"] = case.flops / benchmark.stats.stats.min / 1e9

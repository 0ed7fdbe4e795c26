"""Threads, cores and quotas as the environment gives them (rnn_core/environment.py)."""

import os
import subprocess
import sys

import pytest

from rnn_core import environment


@pytest.fixture
def write(tmp_path):
    """write(path, text) puts a file into a make-believe root of the file system; write.root is that root."""

    def put(path, text):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    put.root = str(tmp_path)
    return put


def test_no_cgroup_no_quota(write):
    assert environment.cgroup_quota(write.root) is None


@pytest.mark.parametrize(
    ("text", "quota"),
    [
        ("150000 100000\n", 1.5),
        ("max 100000\n", None),
        ("50000 100000\n", 0.5),
        ("", None),
        ("junk", None),
        ("1 0", None),
    ],
)
def test_version_2(write, text, quota):
    write("proc/self/cgroup", "0::/user.slice/job\n")
    write("sys/fs/cgroup/user.slice/job/cpu.max", text)
    assert environment.cgroup_quota(write.root) == quota


def test_the_smallest_quota_on_the_way_up_counts(write):
    write("proc/self/cgroup", "0::/a/b/c\n")
    write("sys/fs/cgroup/a/b/c/cpu.max", "max 100000\n")
    write("sys/fs/cgroup/a/b/cpu.max", "300000 100000\n")
    write("sys/fs/cgroup/a/cpu.max", "800000 100000\n")
    assert environment.cgroup_quota(write.root) == 3.0


def test_a_container_that_sees_its_own_group_as_the_root(write):
    write("proc/self/cgroup", "0::/docker/0123456789\n")
    write("sys/fs/cgroup/cpu.max", "200000 100000\n")
    assert environment.cgroup_quota(write.root) == 2.0


@pytest.mark.parametrize(("quota", "expected"), [("250000", 2.5), ("-1", None)])
def test_version_1(write, quota, expected):
    write("proc/self/cgroup", "12:memory:/m\n4:cpu,cpuacct:/job\n0::/\n")
    write("sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", quota + "\n")
    write("sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n")
    write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert environment.cgroup_quota(write.root) == expected


def test_a_quota_is_rounded_up_and_lowers_the_cores(write):
    write("proc/self/cgroup", "0::/\n")
    write("sys/fs/cgroup/cpu.max", "10000 100000\n")
    assert environment.available_cores(write.root) == 1
    write("sys/fs/cgroup/cpu.max", "100000000 100000\n")
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert environment.available_cores(write.root) == affinity


def test_threads():
    assert environment.choose_threads(3, {}) == 3
    assert environment.choose_threads(3, {"RNN_CORE_NUM_THREADS": ""}) == 3
    assert environment.choose_threads(3, {"RNN_CORE_NUM_THREADS": "7"}) == 7
    assert environment.choose_threads(10_000, {}) == environment.MAX_THREADS


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "513", "1 2"])
def test_a_bad_number_of_threads(value):
    with pytest.raises(ValueError, match="RNN_CORE_NUM_THREADS: expected an integer from 1 to 512, got "):
        environment.choose_threads(2, {"RNN_CORE_NUM_THREADS": value})


def test_instruction_sets():
    assert environment.choose_isa("avx2", {}) == "avx2"
    assert environment.choose_isa("avx512", {"RNN_CORE_ISA": "generic"}) == "generic"
    with pytest.raises(RuntimeError, match="RNN_CORE_ISA=avx512: this machine has no avx512, at most avx2"):
        environment.choose_isa("avx2", {"RNN_CORE_ISA": "avx512"})
    with pytest.raises(ValueError, match="expected one of generic, avx2, avx512, got 'neon'"):
        environment.choose_isa("avx2", {"RNN_CORE_ISA": "neon"})


@pytest.mark.parametrize(("value", "status", "text"), [("3", 0, "3"), ("none", 1, "RNN_CORE_NUM_THREADS: expected")])
def test_the_import_reads_it(value, status, text):
    code = "import rnn_core; print(rnn_core.get_num_threads())"
    environ = {**os.environ, "RNN_CORE_NUM_THREADS": value}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == status
    assert text in done.stdout + done.stderr

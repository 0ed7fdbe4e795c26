"""Threads and the report (rnn_core/config.py), and what `import rnn_core` loads (rnn_core/__init__.py)."""

import subprocess
import sys

import pytest

import rnn_core as rc

HEAVY = [
    "scipy",
    "safetensors",
    "tqdm",
    "matplotlib",
    "torch",
    "onnx",
    "subprocess",
    "asyncio",
    "email",
    "http",
    "pathlib",
]


@pytest.fixture(autouse=True)
def same_threads():
    before = rc.get_num_threads()
    yield
    rc.set_num_threads(before)


def test_set_num_threads():
    for n in (1, 3, 512):
        rc.set_num_threads(n)
        assert rc.get_num_threads() == n


@pytest.mark.parametrize(
    ("n", "error", "text"),
    [
        (0, ValueError, "n: expected 1 to"),
        (-2, ValueError, "n: expected 1 to"),
        (513, ValueError, "n: expected at most 512 threads, got 513"),
        (1.0, TypeError, "n: expected an integer, got float"),
        ("2", TypeError, "n: expected an integer, got str"),
        (True, TypeError, "n: expected an integer, got bool"),
        (None, TypeError, "n: expected an integer, got NoneType"),
    ],
)
def test_a_bad_number_of_threads_changes_nothing(n, error, text):
    rc.set_num_threads(2)
    with pytest.raises(error, match=text):
        rc.set_num_threads(n)
    assert rc.get_num_threads() == 2


def test_show_config(capsys):
    rc.set_num_threads(2)
    report = rc.show_config(mode="dicts")
    assert report["cpu"]["instruction set"] in ("generic", "avx2", "avx512")
    assert report["threads"]["threads"] == 2
    assert report["blas"]["name"]
    assert report["versions"]["rnn_core"] == rc.__version__
    assert capsys.readouterr().out == ""
    assert rc.show_config() is None
    printed = capsys.readouterr().out
    for section, entries in report.items():
        assert f"{section}:\n" in printed
        for name, value in entries.items():
            assert f"  {name}: {value}\n" in printed


def test_show_config_refuses_an_unknown_mode():
    with pytest.raises(ValueError, match='mode: expected "stdout" or "dicts", got \'json\''):
        rc.show_config(mode="json")


def loaded_by(code):
    """The modules that a fresh process has loaded after `code` and had not after `import numpy`."""
    code = f"import sys, numpy; before = set(sys.modules)\n{code}\nprint(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.split()


def test_the_import_is_light():
    loaded = loaded_by("import rnn_core")
    assert not [name for name in loaded if name.partition(".")[0] in HEAVY]
    assert len(loaded) < 20


def test_every_public_name_is_there():
    for name in rc.__all__:
        assert getattr(rc, name) is getattr(rc, name)
        assert name in dir(rc)


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="module 'rnn_core' has no attribute 'LSTMM'"):
        _ = rc.LSTMM
    assert not hasattr(rc, "__wrapped__")

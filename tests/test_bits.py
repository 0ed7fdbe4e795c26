"""The promise about bits: float32 results do not depend on the batch, the threads, the cut in time or the CPU."""

import numpy as np
import pytest
from cases import KINDS, Case, cell_of, exact_bits, parts, public, run_python, same

from rnn_core import _runtime

pytestmark = exact_bits
SEEDS = 100  # a kind, in blocks
LARGE = [(40, 64), (20, 200), (100, 257), (8, 512)]  # (I, H)


def sized(kind, seed):
    """A random case; every tenth is large."""
    if seed % 10:
        return Case.random(kind, seed)
    I, H = LARGE[seed // 10 % len(LARGE)]
    return Case.random(kind, seed, input_size=I, hidden_size=H, T=int(seed % 7) + 1, num_layers=1, proj_size=0)


def run(layer, x, state, lengths=None):
    """y and the final state in one tuple."""
    y, final = layer(x, public(state), lengths)
    return (y, *parts(final))


def rows(arrays, index):
    """Those rows of (T, B, .) and (L*D, B, .) arrays."""
    return None if arrays is None else tuple(np.ascontiguousarray(a[:, index]) for a in arrays)


def check_forward_is_inference(case, layer, x, state, want):
    y, final, _ = layer.forward(x, public(state), case.lengths)
    same((y, *parts(final)), want, "forward", case)


def check_batch(case, layer, x, state, want):
    """Each row alone, and all rows at other positions in a larger batch."""
    rng = case.rng(3)
    for index in ([int(rng.integers(case.B))], rng.integers(0, case.B, int(rng.integers(1, 24)))):
        lengths = None if case.lengths is None else np.array(case.lengths)[index]
        found = run(layer, rows((x,), index)[0], rows(state, index), lengths)
        same(found, rows(want, index), "rows", list(index), case)


def check_lengths(case, layer, x, state, want):
    """With all lengths T as without; each row of a ragged batch as that sequence alone."""
    if case.lengths is None:
        same(run(layer, x, state, [case.T] * case.B), want, "full lengths", case)
        return
    for row, n in enumerate(case.lengths):
        y, *final = run(layer, x[:n, row : row + 1], rows(state, [row]))
        same(y[:, 0], want[0][:n, row], "row alone", row, case)
        same(tuple(s[:, 0] for s in final), tuple(s[:, row] for s in want[1:]), "state alone", row, case)


def check_cut_in_time(case, layer, x, state, want):
    """In two chunks and step by step; a bidirectional layer cannot be cut."""
    if case.bidirectional or case.lengths is not None or case.T == 0:
        return
    cut = int(case.rng(4).integers(0, case.T + 1))
    for bounds in ([0, cut, case.T], range(case.T + 1)):
        ys, s = [], state
        for start, stop in zip(bounds, list(bounds)[1:]):
            y, *s = run(layer, x[start:stop], None if s is None else tuple(s))
            ys.append(y)
        same((np.concatenate(ys), *s), want, "cut at", list(bounds), case)


def check_cells(case, layer, x, state, want):
    """cell(x), cell.step and cell.step(out=) over time."""
    if case.bidirectional or case.lengths is not None or case.num_layers > 1 or case.proj_size:
        return
    cell = cell_of(layer, case)
    zero = tuple(np.zeros_like(s[0]) for s in want[1:])
    first = zero if state is None else tuple(s[0] for s in state)
    called = stepped = public(first)
    held = public(tuple(s.copy() for s in first))
    for t in range(case.T):
        called = cell(x[t], called)
        stepped = cell.step(x[t], stepped)
        held = cell.step(x[t], held, out=held)
        for way, now in (("cell", called), ("step", stepped), ("out", held)):
            same(parts(now)[0], want[0][t], way, t, case)
    same(parts(held), tuple(s[0] for s in want[1:]), "last state", case)


CHECKS = (check_forward_is_inference, check_batch, check_lengths, check_cut_in_time, check_cells)


@pytest.mark.parametrize("block", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_random_cases(kind, block, threads):
    for seed in range(block, SEEDS, 4):
        case = sized(kind, seed)
        layer = case.layer()
        x, state, _, _ = case.arrays()
        threads(1 + seed % 3)
        want = run(layer, x, state, case.lengths)
        for check in CHECKS:
            check(case, layer, x, state, want)


def results(case, **options):
    """Inference, and all gradients of one forward and backward."""
    layer = case.layer(**options)
    x, state, dy, dstate = case.arrays()
    y, final, tape = layer.forward(x, public(state), case.lengths)
    dx, dinitial = layer.backward(tape, dy, public(dstate))
    trained = (y, *parts(final), dx, *parts(dinitial), *layer.grads.values())
    return run(layer, x, state, case.lengths) + trained


@pytest.mark.parametrize("kind", KINDS)
def test_threads(kind, threads):
    for seed in range(40):
        case = sized(kind, 300 + seed)
        threads(1)
        want = results(case)
        for n in (2, 3):
            threads(n)
            same(results(case), want, n, "threads", case)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_on_work_worth_sharing(kind, threads):
    sizes = [(96, 20, 32, 1, False), (130, 8, 17, 2, True), (512, 4, 1, 2, False), (64, 40, 33, 2, True),
             (40, 3, 300, 1, False), (640, 3, 19, 1, True), (640, 2, 40, 1, False), (1030, 2, 4, 1, False)]
    for H, T, B, L, ragged in sizes:  # the last three with weights beyond L2, whose k comes in blocks
        lengths = tuple(int(n) for n in np.random.default_rng(H).integers(0, T + 1, B)) if ragged else None
        case = Case.random(kind, H, input_size=70, hidden_size=H, num_layers=L, proj_size=0, T=T, B=B, lengths=lengths)
        threads(1)
        want = results(case)
        for n in (2, 3):
            threads(n)
            same(results(case), want, n, "threads", case)
        threads(2)
        x, state, _, _ = case.arrays()
        check_batch(case, case.layer(), x, state, want[: 2 + (kind == "lstm")])


@pytest.mark.parametrize("kind", KINDS)
def test_two_directions_with_a_team_each(kind, threads):
    for T, B in ((40, 1), (9, 5)):
        shape = {"input_size": 256, "hidden_size": 256, "num_layers": 2, "proj_size": 0, "bidirectional": True}
        case = Case.random(kind, T, **shape, T=T, B=B, lengths=None)
        layer = case.layer()
        x, state, _, _ = case.arrays()
        threads(1)
        want = run(layer, x, state)
        for n in (2, 3, 4, 5, 7):
            threads(n)
            same(run(layer, x, state), want, n, "threads", case)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_that_take_turns(kind, threads):
    """Steps too small to be shared out: some threads are a chunk ahead of others."""
    sizes = [(32, 500, 1, 1, False), (17, 160, 3, 2, True), (20, 300, 2, 3, False), (24, 200, 5, 1, True)]
    for H, T, B, L, ragged in sizes:
        lengths = tuple(int(n) for n in np.random.default_rng(H).integers(0, T + 1, B)) if ragged else None
        for proj_size in (0, 7) if kind == "lstm" else (0,):
            shape = {"input_size": 30, "hidden_size": H, "num_layers": L, "proj_size": proj_size}
            case = Case.random(kind, H, **shape, T=T, B=B, lengths=lengths, bidirectional=False)
            layer = case.layer()
            x, state, _, _ = case.arrays()
            threads(1)
            want = run(layer, x, state, lengths)
            every = parts(layer(x, public(state), lengths, return_all_states=True)[1])
            for n in (2, 3, 4, 7):
                threads(n)
                same(run(layer, x, state, lengths), want, n, "threads", case)
                found = layer(x, public(state), lengths, return_all_states=True)[1]
                same(parts(found), every, n, "threads, every state", case)


@pytest.mark.parametrize("l1", [32 << 10, 48 << 10])  # by which the kernels know an L3 that is fast, or slow
@pytest.mark.parametrize("kind", KINDS)
def test_steps_of_large_cells(kind, l1, threads, assume_l1):
    """Weights of which a step reads most from L3 come in other slices, or whole."""
    assume_l1(l1)
    sizes = {"input_size": 900, "hidden_size": 900, "num_layers": 1, "proj_size": 0, "T": 3}
    for B in (1, 3, 6):
        case = Case.random(kind, 7, **sizes, B=B, bidirectional=False, lengths=None)
        layer = case.layer()
        x, state, _, _ = case.arrays()
        want = run(layer, x, state)
        for n in (1, 2):
            threads(n)
            check_cells(case, layer, x, state, want)


@pytest.mark.parametrize("kind", KINDS)
def test_backward_with_another_number_of_threads(kind, threads):
    """What one number of threads kept for backward, each its own sequences together, another takes up."""
    sizes = {"input_size": 20, "hidden_size": 40, "num_layers": 2, "proj_size": 0, "T": 9, "B": 50}
    case = Case.random(kind, 33, **sizes, bidirectional=False, lengths=None)
    x, state, dy, dstate = case.arrays()
    found = {}
    for forward in (1, 2, 3):
        for backward in (1, 2, 3):
            layer = case.layer()
            threads(forward)
            _, _, tape = layer.forward(x, public(state))
            threads(backward)
            dx, dinitial = layer.backward(tape, dy, public(dstate))
            found[forward, backward] = (dx, *parts(dinitial), *layer.grads.values())
    for threads_taken, arrays in found.items():
        same(arrays, found[1, 1], *threads_taken, case)


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_in_chunks_of_steps(kind):
    """Long enough that the input projection is computed in several chunks."""
    sizes = {"input_size": 5, "hidden_size": 48, "num_layers": 1, "proj_size": 0, "T": 700, "B": 3, "lengths": None}
    for bidirectional in (False, True):
        case = Case.random(kind, 21, **sizes, bidirectional=bidirectional)
        layer = case.layer()
        x, state, _, _ = case.arrays()
        want = run(layer, x, state)
        for check in CHECKS:
            check(case, layer, x, state, want)


@pytest.mark.parametrize("kind", KINDS)
def test_denormals_count_as_zeros_and_the_caller_keeps_his(kind, threads):
    for n in (1, 2, 3):
        threads(n)
        case = Case.random(kind, 23, hidden_size=100, T=40, B=12, lengths=None, num_layers=1, proj_size=0)
        layer = case.layer()
        x, _, dy, _ = case.arrays()
        tiny = np.full_like(x, 1e-41)
        want = run(layer, np.zeros_like(x), None)
        same(run(layer, tiny, None), want, n, case)
        y, _, tape = layer.forward(tiny)
        same(y, want[0], n, case)
        dx, _ = layer.backward(tape, dy * np.float32(1e-37))
        for array in (*want, dx, *layer.grads.values()):
            assert not ((array != 0) & (np.abs(array) < 2.0**-126)).any(), (n, case)
        assert np.float32(1e-40) * np.float32(0.5) > 0, "the caller's control register was not restored"


WORKER = """
import sys
import numpy as np
from test_bits import KINDS, sized, results
found = {}
for kind in KINDS:
    for seed in range(int(sys.argv[2])):
        for n, array in enumerate(results(sized(kind, 600 + seed), layer_norm=sys.argv[3] == "layer_norm")):
            found[f"{kind}.{seed}.{n}"] = array
np.savez(sys.argv[1], **found)
"""
CASES_A_KIND = 60


@pytest.mark.parametrize("cell", ["plain", "layer_norm"])
@pytest.mark.skipif(_runtime.isa() != "avx512", reason="needs a CPU with AVX-512")
def test_avx2_gives_the_bits_of_avx512(tmp_path, cell):
    run_python(WORKER, tmp_path / "avx2.npz", CASES_A_KIND, cell, env={"RNN_CORE_ISA": "avx2"})
    with np.load(tmp_path / "avx2.npz") as narrow:
        for kind in KINDS:
            for seed in range(CASES_A_KIND):
                case = sized(kind, 600 + seed)
                for n, array in enumerate(results(case, layer_norm=cell == "layer_norm")):
                    same(narrow[f"{kind}.{seed}.{n}"], array, "result", n, case)

"""Token sequences as one array: the compiled short way and NumPy's give the same, or leave it to NumPy."""

import numpy as np
import pytest

from rnn_core import _tokens
from rnn_core.seq2seq_parts import ragged_tokens


@pytest.mark.parametrize("rows", [[[1, 2, 3], [4], [0, 6]], [[5]], [[1], [], [2]], [], [[], []]])
def test_lists_of_integers(rows):
    values, lengths = _tokens.from_lists(rows, 7, 0)
    assert values.dtype == lengths.dtype == np.int64
    assert values.tolist() == [token for row in rows for token in row]
    assert lengths.tolist() == [len(row) for row in rows]
    given = ragged_tokens("tokens", tuple(rows), None, 7)  # not a list: NumPy's way
    assert np.array_equal(values, given.values) and np.array_equal(lengths, given.lengths)


@pytest.mark.parametrize("rows", [[[7]], [[-1]], [[1 << 70]], [[True]], [[1.0]], [(1, 2)], [np.arange(3)], [[1], []],
                                  ([1],), [[np.int64(1)]], ["1"], None, [[None]]])
def test_all_else_is_left_to_numpy(rows):
    assert _tokens.from_lists(rows, 7, 1) is None


@pytest.mark.parametrize(("rows", "fault"), [([[1], [7]], ValueError), ([[-1]], ValueError), ([[1], []], ValueError),
                                             ([[1 << 70]], (TypeError, ValueError)), ([[1.5]], TypeError)])
def test_faults_are_named(rows, fault):
    with pytest.raises(fault, match="tokens"):
        ragged_tokens("tokens", rows, None, 7, 1)


@pytest.mark.parametrize("lengths", [[], [3], [2, 0, 5]])
def test_offsets(lengths):
    found = _tokens.offsets(np.array(lengths, np.int64))
    assert found.dtype == np.int64 and found.tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]

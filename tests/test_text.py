"""rnn_core.text: reading files, the default text, and the order in which a text is read."""

from __future__ import annotations

import numpy as np
import pytest

from rnn_core.text import Streams, fingerprint, read_texts, split, standard_library, vocabulary


@pytest.mark.parametrize("length, batch, steps", [(400, 3, 5), (102, 1, 100), (19, 3, 5), (1000, 7, 11)])
def test_streams_read_on_from_piece_to_piece(length, batch, steps):
    tokens = np.arange(length, dtype=np.int32)
    streams = Streams(tokens, batch, steps)
    assert length - batch * (steps + 1) <= streams.chunks * batch * steps < length
    for offset in (0, streams.offsets - 1):
        pieces = [streams.chunk(k, offset) for k in range(streams.chunks)]
        for x, y in pieces:
            assert x.shape == y.shape == (steps, batch) and x.dtype == y.dtype == np.int64
            np.testing.assert_array_equal(x + 1, y)
        read = np.concatenate([x for x, _ in pieces])
        np.testing.assert_array_equal(read.T.ravel(), offset + np.arange(streams.chunks * batch * steps))
    assert pieces[-1][1].max() == length - 1


def test_a_text_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="expected at least 19 characters to train on .* got 18"):
        Streams(np.arange(18), 3, 5)


def test_the_last_part_is_held_out():
    training, held_out = split(np.arange(100), 0.05)
    assert list(held_out) == [95, 96, 97, 98, 99] and len(training) == 95


def test_files_are_read_as_text(tmp_path):
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    one.write_bytes("\ufeffä\r\nb".encode())
    two.write_text("c")
    three.write_bytes(b"ab\xffc")
    assert read_texts([one, two]) == "ä\nbc"
    with pytest.raises(ValueError, match=r"three: expected UTF-8 text, got byte 0xff at position 2"):
        read_texts([one, three])
    with pytest.raises(FileNotFoundError):
        read_texts([tmp_path / "four"])
    two.write_text("")
    with pytest.raises(ValueError, match="expected some text"):
        read_texts([two])


def test_the_standard_library_is_a_text_on_every_machine():
    text = standard_library()
    assert len(text) > 1_000_000 and text.isascii() and "\r" not in text
    assert len(vocabulary(text)) < 128 and text.count("def ") > 1000


def test_a_text_is_known_again():
    assert fingerprint("ab\ud800") == fingerprint("ab\ud800") != fingerprint("ab")
    assert vocabulary("banana\n") == "\nabn"

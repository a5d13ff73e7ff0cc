"""Errors are one line, whatever names and texts go into them."""

import pytest

from samfeat_core.errors import EngineError, FileError, SamfeatError, WeightsError, one_line


@pytest.mark.parametrize("kind", [SamfeatError, WeightsError, EngineError, FileError])
def test_every_error_is_one_line(kind):
    assert str(kind("a name\nwith\r\n  breaks\tin it ")) == "a name with breaks in it"


def test_long_texts_are_cut():
    assert one_line("abc\ndef", 7) == "abc def"
    assert one_line("abc\ndefg", 7) == "abc ..."

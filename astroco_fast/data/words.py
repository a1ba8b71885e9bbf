"""Words: the text of ids, bands and labels in one form, whatever a table holds them as.

Blanks around a word, as files of fixed width have them, are no part of it. Words such as "nan" are no ids or labels.
Numbers that a program has rounded are none either: they would merge stars.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from astroco_fast.errors import UserError

# Spellings of "no value" in lower case. NA is not among them: in the GCVS it is a class, fast novae.
NO_WORD = ("", "n/a", "nan", "<na>", "null", "none", "-", "--")
# From these on, whole numbers are not all different as floats of so many bits.
_LARGEST_WHOLE = {16: 2.0**11, 32: 2.0**24, 64: 2.0**53}
# Text of a number that may be rounded: 4.703128837201837e+18 by pandas, 4.70313E+18 by a spreadsheet.
_ROUNDED = r"^[+-]?(\d\.\d{4,}[eE]\+\d+|\d{16,}\.0*)$"
# A quoted word as Arrow gives it where blanks follow the commas of a text file.
_BLANK_AND_QUOTES = r'^\s+"(.*)"\s*$'
_NO_TEXT = "its bytes are no UTF-8 text"
_MERGED = (
    "is a rounded number: several ids may have become this one; write them as text or whole numbers, in pandas with "
    "dtype str or int64"
)


@dataclass(frozen=True)
class Place:
    """The place of a column's values, for messages. Rows count from 1, without the header."""

    source: str
    column: str
    first_row: int = 0

    def error(self, what: str, index: int | None = None) -> UserError:
        row = "" if index is None else f", row {self.first_row + index + 1}"
        return UserError(f"{self.source}: column {self.column!r}{row}: {what}")


def to_text(array: Any, place: Place, *, required: bool = False, any_word: bool = False) -> Any:
    """An Arrow string array of an array's values, without surrounding blanks.

    Whole numbers are written without a point, missing values as "". So are words that spell "no value" (nan, None,
    <NA> ...).

    Args:
        array: Arrow array or chunked array of numbers or text.
        place: the place of the values, for error messages.
        required: whether every row needs a value, which names the row: an id.
        any_word: whether such words are values too, as for bands, which have names of every kind.

    Raises:
        UserError: the type has no plain text form; or, where `required`, a value is missing, or a number was rounded,
            so that it may be several ids.
    """
    array = plain_array(array)
    kind = array.type
    if pa.types.is_floating(kind):
        if required:
            _refuse_rounded_floats(array, place)
        array = _float_text(array)
    elif pa.types.is_decimal(kind):
        array = _decimal_text(array)
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        try:
            array = pc.cast(pc.cast(array, pa.binary()), pa.string())
        except pa.ArrowInvalid as error:
            raise place.error(_NO_TEXT) from error
    elif pa.types.is_nested(kind):
        raise place.error(f"one value a row is needed, but it holds {kind}")
    try:
        given = pc.fill_null(pc.cast(array, pa.string()), "")
        check_text(given, place)
        text = _tidy(given, any_word, place if required else None)
    except pa.ArrowNotImplementedError as error:
        raise place.error(f"text or numbers are needed, but it holds {kind}") from error
    if required and len(text):
        missing = pc.equal(text, "").to_numpy(zero_copy_only=False)
        if missing.any():
            row = int(np.argmax(missing))
            word = given[row].as_py().strip()
            raise place.error(f"no value{word and f' ({word!r})'}; every row needs one", row)
    return text


def check_text(text: Any, place: Place) -> None:
    """Refuse an Arrow string array whose bytes are no text, which the file or program it comes from never checked."""
    try:
        text.validate(full=True)
    except pa.ArrowInvalid as error:
        raise place.error(_NO_TEXT) from error


def _tidy(text: Any, any_word: bool, ids: Place | None) -> Any:
    """Text without blanks around it, and "" for words that spell "no value", unless any word is a value.

    Raises:
        UserError: one of the ids at this place is the text of a number that was rounded.
    """
    coded = text.dictionary_encode()  # many rows have few words
    words = coded.dictionary
    tidy = pc.utf8_trim_whitespace(pc.replace_substring_regex(words, _BLANK_AND_QUOTES, r"\1"))
    if not any_word:
        none = pc.is_in(pc.utf8_lower(tidy), value_set=pa.array(NO_WORD))
        tidy = pc.if_else(none, pa.scalar(""), tidy)
    if ids is not None:
        for word in filter(_is_rounded, tidy.filter(pc.match_substring_regex(tidy, _ROUNDED)).to_pylist()):
            raise ids.error(f"{word!r} {_MERGED}", pc.index(coded.indices, pc.index(tidy, word)).as_py())
    return text if tidy.equals(words) else tidy.take(coded.indices)


def _is_rounded(word: str) -> bool:
    """Whether a number in this form (`_ROUNDED`) lost digits: some are not written, or a float cannot hold all."""
    digits, _, exponent = word.lower().partition("e")
    return len(digits.partition(".")[2]) < int(exponent or 0) or abs(float(word)) >= _LARGEST_WHOLE[64]


def is_no_value(word: str) -> bool:
    """Whether a word spells "no value" where an id or a label should be."""
    return word.strip().lower() in NO_WORD


def to_objects(text: Any) -> NDArray[np.object_]:
    """An object array of str of an Arrow string array."""
    return np.asarray(text.to_numpy(zero_copy_only=False), dtype=object)


def plain_array(array: Any) -> Any:
    """One contiguous array of the values themselves, neither dictionary- nor run-end-encoded."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
        if isinstance(array, pa.ChunkedArray):  # of no chunk, in some versions
            array = array.chunk(0) if array.num_chunks else pa.array([], type=array.type)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    elif pa.types.is_run_end_encoded(array.type):
        array = pc.run_end_decode(array)
    return array


def _refuse_rounded_floats(ids: Any, place: Place) -> None:
    values = pc.cast(ids, pa.float64())
    rounded = pc.fill_null(pc.greater_equal(pc.abs(values), _LARGEST_WHOLE[ids.type.bit_width]), False)
    if pc.any(rounded).as_py():
        row = pc.index(rounded, True).as_py()
        raise place.error(f"{values[row].as_py():.0f} {_MERGED}", row)


def _float_text(array: Any) -> Any:
    values = pc.cast(array, pa.float64())
    whole = pc.and_(pc.equal(values, pc.round(values)), pc.less(pc.abs(values), 2.0**63))
    as_whole = pc.cast(pc.cast(pc.if_else(whole, values, None), pa.int64(), safe=False), pa.string())
    missing = pc.or_(pc.is_null(values), pc.fill_null(pc.is_nan(values), True))
    return pc.if_else(missing, pa.scalar(None, pa.string()), pc.coalesce(as_whole, pc.cast(values, pa.string())))


def _decimal_text(array: Any) -> Any:
    """Decimals as exact text, without the zeros at the end of a fraction."""
    if array.type.scale < 0:  # text such as 1E+3
        array = pc.cast(array, pa.decimal256(76, 0))
    return pc.replace_substring_regex(pc.cast(array, pa.string()), r"\.0+$|(\.\d*?[1-9])0+$|E-\d\d$", r"\1")

"""Bytes to arrays: what is taken, what is refused, and that nothing but ValueError comes of nonsense."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batuta.dataflow.tensors import decode

F32 = np.dtype("float32")
U8 = np.dtype("uint8")


@pytest.mark.parametrize(
    ("data", "dtype", "shape", "expected"),
    [
        ("[1, 2.5]", "float32", (2,), [1, 2.5]),
        ("[[1, 2.5]]", "float32", (2,), [1, 2.5]),
        ('{"data": [1, 2]}', "float32", (2,), [1, 2]),
        ("[[1, 2], [3, 4]]", "float32", (4,), [1, 2, 3, 4]),
        ("[1, 2, 3, 4]", "uint8", (2, 2), [[1, 2], [3, 4]]),
        ("[1.0, 255]", "uint8", (2,), [1, 255]),
        ("[1, 2, 3]", "int64", (-1,), [1, 2, 3]),
        ("[true, false]", "bool", (2,), [True, False]),
        ('["a", "b"]', "object", (2,), ["a", "b"]),
        ("7", "float32", (), 7),
        ("[7]", "float32", (), 7),
    ],
)
def test_json_that_is_taken(data: str, dtype: str, shape: tuple[int, ...], expected: Any) -> None:
    found = decode(data.encode(), "json", np.dtype(dtype), shape).tensor
    assert found.dtype == np.dtype(dtype)
    assert found.shape == np.shape(expected)
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("data", "dtype", "shape", "why"),
    [
        ("", "float32", (2,), "not JSON"),
        ("[" * 100_000, "float32", (2,), "not JSON"),
        ("[1]", "float32", (2,), r"expected shape \[2\], found \[1\]"),
        ("[1, 2, 3, 4]", "float32", (-1, 2), "expected shape"),
        ("[[1, 2], [3]]", "float32", (2, 2), "unequal lengths"),
        ('["1", "2"]', "float32", (2,), "found text"),
        ("[true, false]", "float32", (2,), "found truth values"),
        ("[1, 2]", "bool", (2,), "expected bool"),
        ("[null, 1]", "float32", (2,), "mixed values"),
        ("[256, 0]", "uint8", (2,), "not a whole uint8"),
        ("[-1, 0]", "uint8", (2,), "not a whole uint8"),
        ("[1.5, 0]", "uint8", (2,), "not a whole uint8"),
        ("[1e39, 0]", "float32", (2,), "too large"),
        ('{"image": [1, 2]}', "float32", (2,), 'needs the key "data"'),
        ("[1, 2]", "object", (2,), "expected text"),
        (f"[{2**70}, 1]", "int64", (2,), "int64"),
    ],
)
def test_json_that_is_refused(data: str, dtype: str, shape: tuple[int, ...], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        decode(data.encode(), "json", np.dtype(dtype), shape)


def test_raw_is_little_endian_in_rows() -> None:
    image = np.arange(6, dtype="<f4").reshape(2, 3)
    assert decode(image.tobytes(), "raw", F32, (2, 3)).tensor.tolist() == image.tolist()
    assert decode(image.tobytes(), "raw", F32, (-1, 3)).tensor.shape == (2, 3)
    assert decode(b"\x01\x00", "raw", np.dtype("uint16"), (1,)).tensor.tolist() == [1]


@pytest.mark.parametrize(("size", "shape"), [(0, (2,)), (7, (2,)), (12, (2,)), (4, (2,)), (20, (-1, 2)), (8, (-1, -1))])
def test_raw_of_the_wrong_size_is_refused(size: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="bytes"):
        decode(b"\0" * size, "raw", F32, shape)


@given(
    st.binary(max_size=200), st.sampled_from(["json", "raw"]), st.sampled_from(["float32", "uint8", "bool", "object"])
)
def test_any_bytes_are_taken_or_refused_by_value_error(data: bytes, how: Any, dtype: str) -> None:
    try:
        found = decode(data, how, np.dtype(dtype), (3,)).tensor
    except ValueError:
        return
    assert found.shape == (3,)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["data", "x"]), inner, max_size=2),
    max_leaves=12,
)


@given(json_values, st.sampled_from(["float32", "float64", "uint8", "int64", "bool", "object"]))
def test_any_json_is_taken_or_refused_by_value_error(value: Any, dtype: str) -> None:
    try:
        found = decode(msgspec.json.encode(value), "json", np.dtype(dtype), (2, 2)).tensor
    except ValueError:
        return
    assert found.shape == (2, 2)


def test_a_message_may_have_a_name() -> None:
    named = decode(b'{"data": [1, 2], "id": "cam-7"}', "json", F32, (2,))
    assert (named.tensor.tolist(), named.id) == ([1, 2], "cam-7")
    assert decode(b"[1, 2]", "json", F32, (2,)).id is None


@pytest.mark.parametrize("name", ['""', "7", '"a\\nb"', '"' + "x" * 129 + '"', "[]"])
def test_a_name_is_short_plain_text(name: str) -> None:
    with pytest.raises(ValueError, match='"id" is a text'):
        decode(b'{"data": [1], "id": ' + name.encode() + b"}", "json", F32, (1,))

"""The directory's index, in both kernel sets, against a dict."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oram import kernels
from oram.errors import ParameterError

#: Few distinct first bytes, which are the hash: long runs of collisions, also around the end of the table.
TAGS = st.builds(
    lambda low, tail: low.to_bytes(8, "little") + tail.to_bytes(8, "little"),
    st.sampled_from([0, 1, 2, 5, 63, 126, 127, 2**64 - 1]),
    st.integers(1, 40),
)


@pytest.mark.parametrize("name", ["reference", "native"])
@settings(max_examples=150)
@given(
    n=st.integers(1, 50),
    steps=st.lists(st.tuples(st.sampled_from(["insert", "insert", "remove", "rebuild"]), TAGS), max_size=120),
)
def test_index(name: str, n: int, steps: list[tuple[str, bytes]]) -> None:
    try:
        kernel = kernels.load(name)
    except ParameterError:
        pytest.skip("the native kernels are not built here")
    tags = np.zeros((n, 16), np.uint8)
    index = kernel.index(tags)
    model: dict[bytes, int] = {}
    free = list(range(n))
    for step, tag in steps:
        if step == "insert" and tag not in model and free:
            model[tag] = free.pop()
            index.insert(tag, model[tag])
        elif step == "remove" and tag in model:
            address = model.pop(tag)
            index.remove(address)
            free.append(address)
        elif step == "rebuild":
            index = kernel.index(tags)
        assert index.find(tag) == model.get(tag, -1)
        assert {bytes(row): i for i, row in enumerate(tags) if row.any()} == model
    for tag in {tag for _, tag in steps}:
        assert index.find(tag) == model.get(tag, -1)


@pytest.mark.parametrize("name", ["reference", "native"])
def test_a_full_index(name: str) -> None:
    try:
        kernel = kernels.load(name)
    except ParameterError:
        pytest.skip("the native kernels are not built here")
    tags = np.random.default_rng(5).integers(1, 256, (3000, 16)).astype(np.uint8)
    wanted = [row.tobytes() for row in tags]
    index = kernel.index(tags)
    assert [index.find(tag) for tag in wanted] == list(range(3000))
    for address in range(0, 3000, 2):
        index.remove(address)
    assert [index.find(tag) for tag in wanted] == [-1 if address % 2 == 0 else address for address in range(3000)]
    assert index.find(bytes(15) + b"x") == -1

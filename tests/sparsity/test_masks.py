"""The 2:4 kernels against an oracle that sorts each group, for every dtype, axis and engine."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest

from onnx24.sparsity import masks

FLOATS = [np.float32, np.float16, ml_dtypes.bfloat16, np.float64]
NARROW = [np.int8, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
NAMES = {dtype: np.dtype(dtype).name for dtype in FLOATS + NARROW}
ENGINES = ["numpy", "numba"]

# Shapes and axes: K last, first, in the middle; strides around the switch between the kernels, and
# sizes that are no multiple of a chunk.
PLACES = [
    ((4,), 0),
    ((8, 4), 1),
    ((8, 5), 0),
    ((3, 8, 3, 3), 1),
    ((2, 4, 1, 1), 1),
    ((5, 12, 7), -2),
    ((2, 8, 511), 1),
    ((2, 8, 512), 1),
    ((1, 4, 2049), 1),
    ((400, 332), 1),
    ((332, 403), 0),
    ((4, 70_000), 0),
]


def engines(engine: str) -> str:
    if engine == "numba":
        pytest.importorskip("numba", reason="the extra `fast` is not installed")
    return engine


def sample(shape: tuple[int, ...], dtype: type, seed: int) -> np.ndarray:
    """Normal values, of which many tie (a few levels) and some are 0 or -0."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape)
    if seed % 2:
        values = np.round(values)  # ties, zeros and negative zeros
    if np.dtype(dtype) == np.int8:
        return np.clip(np.round(values * 60), -128, 127).astype(np.int8)
    return values.astype(dtype)


def oracle(array: np.ndarray, axis: int) -> np.ndarray:
    """The mask by sorting: the larger magnitude first, then the lower index."""
    size = np.abs(array.astype(np.float64))
    moved = np.moveaxis(size, axis, -1)
    groups = moved.reshape(-1, 4)
    mask = np.zeros(groups.shape, bool)
    for row, group in zip(mask, groups, strict=True):
        order = sorted(range(4), key=lambda i: (-group[i], i))
        row[order[:2]] = True
    return np.moveaxis(mask.reshape(moved.shape), -1, axis)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", FLOATS + NARROW, ids=NAMES.get)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_largest_two_of_four_survive(dtype: type, seed: int, engine: str):
    for shape, axis in PLACES[:7]:
        array = sample(shape, dtype, seed)
        mask = oracle(array, axis)
        expected = np.where(mask, array, np.zeros((), dtype))
        actual = masks.prune_24(array, axis, engine=engines(engine))
        assert actual.dtype == array.dtype and actual.shape == shape
        # Bits: a kept -0 stays -0, a dropped value becomes +0.
        assert actual.tobytes() == expected.tobytes(), (shape, axis)
        np.testing.assert_array_equal(masks.mask_24(array, axis), mask)


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("seed", [2, 3])
def test_every_place_of_the_axis(place: tuple[tuple[int, ...], int], seed: int):
    shape, axis = place
    array = sample(shape, np.float32, seed)
    mask = masks.mask_24(array, axis)
    np.testing.assert_array_equal(mask, oracle(array, axis))
    pruned = masks.prune_24(array, axis, engine="numpy")
    np.testing.assert_array_equal(pruned, np.where(mask, array, 0))
    assert masks.is_24(pruned, axis)
    assert not masks.is_24(np.ones_like(array), axis)


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=NAMES.get)
def test_both_engines_give_the_same_bits(place: tuple[tuple[int, ...], int], dtype: type):
    engines("numba")
    shape, axis = place
    array = sample(shape, dtype, 5)
    special = array.reshape(-1)
    special[::7] = np.array(np.nan, dtype)
    special[1::11] = np.array(-np.inf, dtype)
    special[2::13] = np.array(np.nextafter(np.float64(0), 1), dtype)
    first = masks.prune_24(array, axis, engine="numpy")
    second = masks.prune_24(array, axis, engine="numba")
    assert first.tobytes() == second.tobytes()


def test_every_order_and_every_tie_of_four():
    groups = np.array(list(itertools.product(range(4), repeat=4)), np.float32)
    mask = masks.mask_24(groups, 1)
    assert (mask.sum(axis=1) == 2).all()
    np.testing.assert_array_equal(mask, oracle(groups, 1))
    np.testing.assert_array_equal(masks.mask_24(groups.T.copy(), 0), mask.T)


def test_all_equal_keeps_the_first_two():
    np.testing.assert_array_equal(masks.mask_24(np.zeros(4, np.float32), 0), [1, 1, 0, 0])
    np.testing.assert_array_equal(masks.mask_24(np.full(4, -3, np.int8), 0), [1, 1, 0, 0])


def test_the_sign_does_not_count():
    array = np.array([-5, 1, 2, -3], np.float32)
    np.testing.assert_array_equal(masks.prune_24(array, 0), [-5, 0, 0, -3])
    lowest = np.array([-128, 127, 126, -127], np.int8)  # |-128| has no int8
    np.testing.assert_array_equal(masks.prune_24(lowest, 0), [-128, 127, 0, 0])


def test_nan_is_the_largest():
    array = np.array([np.inf, 1, np.nan, 3], np.float32)
    np.testing.assert_array_equal(masks.mask_24(array, 0), [1, 0, 1, 0])


def test_subnormals_are_compared_as_they_are():
    tiny = np.array([1, 2, 4, 3], np.uint32).view(np.float32)
    np.testing.assert_array_equal(masks.mask_24(tiny, 0), [0, 0, 1, 1])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("place", [((64, 128), 1), ((16, 8, 3, 3), 1), ((8, 4096), 0)], ids=str)
def test_in_place_is_the_same(place: tuple[tuple[int, ...], int], engine: str):
    shape, axis = place
    array = sample(shape, np.float16, 7)
    expected = masks.prune_24(array, axis)
    result = masks.prune_24(array, axis, array, engine=engines(engine))
    assert result is array
    np.testing.assert_array_equal(array, expected)


def test_the_input_may_be_read_only_and_strided():
    base = sample((16, 12), np.float32, 8)
    view = base[:, ::3].T  # [4, 16], not contiguous
    view.flags.writeable = False
    np.testing.assert_array_equal(masks.prune_24(view, 0), np.where(oracle(view, 0), view, 0))


def test_pruning_twice_changes_nothing():
    once = masks.prune_24(sample((32, 32), np.float32, 9), 0)
    np.testing.assert_array_equal(masks.prune_24(once, 0), once)


def test_groups_without_an_axis_of_their_own():
    # [2, 12] as stored, read as [2, 4, 3]: the groups lie 3 apart.
    stored = sample((2, 12), np.float32, 10)
    expected = masks.prune_24(stored.reshape(2, 4, 3), 1).reshape(2, 12)
    np.testing.assert_array_equal(masks.prune_24_by_stride(stored, 3), expected)
    assert masks.violations_by_stride(expected, 3).violating == 0


@pytest.mark.parametrize(
    ("shape", "axis", "message"),
    [
        ((6, 4), 0, "6 values along axis 0"),
        ((4, 7), -1, "7 values along axis 1"),
        ((4, 4), 2, "axis 2"),
        ((), 0, "0 dimensions"),
    ],
)
def test_sizes_that_cannot_be_grouped(shape: tuple[int, ...], axis: int, message: str):
    for function in (masks.prune_24, masks.mask_24, masks.is_24, masks.count_violations):
        with pytest.raises(ValueError, match=message):
            function(np.zeros(shape, np.float32), axis)


def test_bad_calls():
    array = np.zeros((4, 4), np.float32)
    with pytest.raises(ValueError, match="out is float32"):
        masks.prune_24(array, 0, np.zeros((4, 8), np.float32))
    with pytest.raises(ValueError, match="C-contiguous"):
        masks.prune_24(array, 0, np.zeros((4, 4), np.float32, order="F"))
    with pytest.raises(TypeError, match="int32 cannot be pruned"):
        masks.prune_24(array.astype(np.int32), 0)
    with pytest.raises(TypeError, match="complex64 cannot be pruned"):
        masks.mask_24(array.astype(np.complex64), 0)
    with pytest.raises(ValueError, match="no blocks"):
        masks.prune_24_by_stride(array, 3)


def test_an_empty_array_has_no_groups():
    empty = np.zeros((0, 8), np.float32)
    assert masks.prune_24(empty, 1).shape == (0, 8)
    assert masks.violations(empty, 1) == masks.Violations(0, 0, None)


# --- checking ------------------------------------------------------------------------------
@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("seed", [11, 12])
def test_violations_are_counted_and_located(place: tuple[tuple[int, ...], int], seed: int):
    shape, axis = place
    rng = np.random.default_rng(seed)
    array = (rng.random(shape) < 0.5).astype(np.float32)
    moved = np.moveaxis(array, axis, -1)
    dense = (moved.reshape(*moved.shape[:-1], -1, 4) != 0).sum(-1) > 2
    found = masks.violations(array, axis)
    assert (found.groups, found.violating) == (array.size // 4, dense.sum())
    assert masks.is_24(array, axis) == (not dense.any())
    if dense.any():
        starts = np.moveaxis(np.repeat(dense, 4, axis=-1), -1, axis)
        first = np.argwhere(starts)[0]  # in the order of the stored array
        assert found.first == tuple(first)


@pytest.mark.parametrize(
    "dtype",
    [
        np.float32,
        np.float16,
        ml_dtypes.bfloat16,
        np.float64,
        np.int8,
        np.uint8,
        np.int32,
        np.bool_,
        ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e5m2,
        ml_dtypes.int4,
        ml_dtypes.uint4,
        ml_dtypes.float4_e2m1fn,
    ],
    ids=lambda d: np.dtype(d).name,
)
def test_any_dtype_can_be_checked(dtype: type):
    values = np.array([[1, 0, 1, 0], [0, 0, 1, 1], [1, 0, 0, 0]]).astype(dtype)
    assert masks.is_24(values, 1)
    values[1, 1] = 1
    assert masks.violations(values, 1) == masks.Violations(3, 1, (1, 0))


def test_negative_zero_is_zero():
    for dtype in (np.float32, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn):
        assert masks.is_24(np.array([-0.0, -0.0, 1, -1]).astype(dtype), 0)


def test_negative_int4_is_no_zero():
    assert not masks.is_24(np.array([-1, -8, 7, 0]).astype(ml_dtypes.int4), 0)


def test_the_magnitude_that_is_kept_is_the_greatest_possible():
    array = sample((64, 64), np.float32, 13)
    kept = np.abs(masks.prune_24(array, 1)).reshape(-1, 4).sum(axis=1)
    pairs = [
        np.abs(array).reshape(-1, 4)[:, [i, j]].sum(axis=1)
        for i, j in itertools.combinations(range(4), 2)
    ]
    np.testing.assert_allclose(kept, np.max(pairs, axis=0), rtol=1e-6)

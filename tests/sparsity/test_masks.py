"""The 2:4 kernels against an oracle that sorts each group, for every dtype, axis and engine."""

from __future__ import annotations

import itertools
import math
import time
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx24.sparsity import _numba, masks

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


def by_the_rule(array: np.ndarray, stride: int) -> np.ndarray:
    """A group at a time: the bits without the sign, the larger first, then the lower index."""
    width = 8 * array.itemsize
    if array.dtype == np.int8:
        size = [abs(int(v)) for v in array]
    else:
        bits = array.view(f"u{array.itemsize}")
        size = [int(v) & ((1 << width - 1) - 1) for v in bits]
    result = np.zeros_like(array)
    for block in range(0, array.size, 4 * stride):
        for i in range(block, block + stride):
            group = range(i, i + 4 * stride, stride)
            for kept in sorted(group, key=lambda j: (-size[j], j))[:2]:
                result[kept] = array[kept]
    return result


def special_bits(dtype: type) -> np.ndarray:
    """0, subnormals, ordinary values, the largest, infinity, NaNs, and each with its sign."""
    if np.dtype(dtype) == np.int8:
        return np.array([0, 1, -1, 2, 126, 127, -127, -128], np.int8)
    form = masks._FORMATS[np.dtype(dtype)]
    one = np.array(1, dtype).view(f"u{np.dtype(dtype).itemsize}")[()]
    chosen = [0, 1, 2, int(one), int(one) + 1, form.nonfinite - 1, form.nonfinite, form.magnitude]
    sign = form.magnitude + 1
    both = [bits | s for bits in chosen for s in (0, sign)]
    return np.array(both, f"u{np.dtype(dtype).itemsize}").view(dtype)


@st.composite
def flat_arrays(draw: st.DrawFn, dtype: type) -> tuple[np.ndarray, int]:
    """(values of which many tie or are special, stride): each of the kernels gets its share."""
    stride = draw(st.sampled_from([1, 1, 1, 2, 3, 9, 25, 64, 511, 512, 513, 1030]))
    most = max(1, 1500 // stride)
    blocks = draw(st.integers(1, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = 4 * stride * blocks
    pool = special_bits(dtype)
    bits = rng.integers(0, 256, n * pool.itemsize, np.uint8).view(pool.dtype)
    return np.where(
        rng.random(n) < draw(st.sampled_from([0, 0.5, 1])), rng.choice(pool, n), bits
    ), stride


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", FLOATS + NARROW, ids=NAMES.get)
@given(data=st.data())
def test_the_rule_bit_by_bit(dtype: type, engine: str, data: st.DataObject):
    array, stride = data.draw(flat_arrays(dtype))
    expected = by_the_rule(array, stride)
    actual = masks.prune_24_by_stride(array, stride, engine=engines(engine))
    assert actual.tobytes() == expected.tobytes()
    masks.prune_24_by_stride(array, stride, array, engine=engine)
    assert array.tobytes() == expected.tobytes()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", FLOATS + NARROW, ids=NAMES.get)
def test_every_four_of_the_special_values(dtype: type, engine: str):
    pool = special_bits(dtype)[::2] if np.dtype(dtype) != np.int8 else special_bits(dtype)
    groups = np.array(list(itertools.product(range(pool.size), repeat=4)))
    array = pool[groups]  # [4096, 4]
    expected = by_the_rule(array.reshape(-1), 1).reshape(array.shape)
    actual = masks.prune_24(array, 1, engine=engines(engine))
    assert actual.tobytes() == expected.tobytes()
    across = masks.prune_24(np.ascontiguousarray(array.T), 0, engine=engine)
    assert across.tobytes() == np.ascontiguousarray(expected.T).tobytes()
    folded = np.ascontiguousarray(array.reshape(-1, 16, 4).transpose(0, 2, 1))  # stride 16
    folded = masks.prune_24(folded, 1, engine=engine)
    back = np.ascontiguousarray(folded.transpose(0, 2, 1)).reshape(array.shape)
    assert back.tobytes() == expected.tobytes()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.float8_e5m2], ids=NAMES.get)
@pytest.mark.parametrize("stride", [1, 3, 9, 21, 22, 49, 63, 64, 100, 700, 70_001])
def test_arrays_of_many_chunks(dtype: type, stride: int, engine: str):
    """More than a chunk of either engine, and no multiple of one."""
    blocks = 700_000 // (4 * stride) + 1
    rng = np.random.default_rng(stride)
    array = np.round(rng.standard_normal(4 * stride * blocks, np.float32) * 2).astype(dtype)
    expected = masks.prune_24(array.reshape(blocks, 4, stride).swapaxes(1, 2), 2, engine="numpy")
    expected = expected.swapaxes(1, 2).reshape(-1)  # by another kernel: stride 1
    actual = masks.prune_24_by_stride(array, stride, engine=engines(engine))
    assert actual.tobytes() == expected.tobytes()
    mask = masks.mask_24(array.reshape(blocks, 4, stride), 1)
    np.testing.assert_array_equal(mask.sum(axis=1), 2)
    assert np.where(mask.reshape(-1), array, np.zeros((), dtype)).tobytes() == expected.tobytes()


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


# --- measuring -------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", FLOATS + NARROW, ids=NAMES.get)
@given(data=st.data())
def test_what_is_measured(dtype: type, data: st.DataObject):
    array, stride = data.draw(flat_arrays(dtype))
    if data.draw(st.booleans()):  # finite, so that there is an energy
        with np.errstate(invalid="ignore"):
            array = np.where(np.isfinite(array.astype(np.float64)), array, np.ones((), dtype))
    expected = by_the_rule(array, stride)
    out = np.empty_like(array)
    found = masks.prune_24_measured(array, stride, out, engine="numpy")
    assert out.tobytes() == expected.tobytes()
    with np.errstate(invalid="ignore"):  # signalling NaNs
        wide = array.astype(np.float64)
    assert (found.elements, found.groups) == (array.size, array.size // 4)
    assert found.zeros == np.count_nonzero(wide == 0)
    assert found.nonfinite == np.count_nonzero(~np.isfinite(wide))
    assert found.violating == masks.violations_by_stride(array, stride).violating
    if found.nonfinite:
        assert math.isnan(found.energy) and math.isnan(found.kept_energy)
    elif np.dtype(dtype) != np.float64:  # whose squares overflow
        for energy, values in ((found.energy, wide), (found.kept_energy, expected)):
            exact = sum(Fraction(float(v)) ** 2 for v in values)
            assert energy == pytest.approx(float(exact), rel=1e-13)
    if _numba.available():
        again = masks.prune_24_measured(array, stride, array, engine="numba")
        assert repr(again) == repr(found)
        assert array.tobytes() == expected.tobytes()


def test_an_energy_beyond_float64_is_infinite():
    """Each square of 1.2e154 is a number, their sum is none."""
    array = np.array([1.2e154, 1, 1.2e154, 2])
    found = masks.prune_24_measured(array, 1, None, engine="numpy")
    assert found.energy == found.kept_energy == math.inf and found.nonfinite == 0


@pytest.mark.parametrize("stride", [1, 9, 700, 70_001])
@pytest.mark.parametrize("dtype", FLOATS + NARROW, ids=NAMES.get)
def test_the_sums_keep_their_order(dtype: type, stride: int):
    """The same bits from both engines, and from the order that the module states."""
    blocks = 400_000 // (4 * stride) + 1
    rng = np.random.default_rng(1)
    array = (rng.standard_normal(4 * stride * blocks) * 30).astype(dtype)
    before = array.tobytes()
    found = masks.prune_24_measured(array, stride, engine="numpy")
    assert array.tobytes() == before  # nothing is written without `out`
    engines("numba")
    assert masks.prune_24_measured(array, stride, engine="numba") == found
    form = masks._FORMATS.get(np.dtype(dtype))
    scale = 1.0 if form is None else form.scale
    total = np.zeros(masks._COLUMNS)
    for index, _ in masks._pieces((blocks, 4, stride), masks._MEASURED_CHUNK):
        piece = array.reshape(blocks, 4, stride)[index].reshape(-1).astype(np.float64) / scale
        columns = np.zeros(masks._COLUMNS)
        for start in range(0, piece.size, columns.size):
            row = piece[start : start + columns.size]
            columns[: row.size] += row * row
        total += columns
    assert found.energy == math.fsum(total) * scale * scale


def test_a_measured_array_may_be_read_only_strided_or_empty():
    base = sample((16, 12), np.float32, 8)
    view = base[:, ::3].T
    view.flags.writeable = False
    found = masks.prune_24_measured(view, 1)
    assert found == masks.prune_24_measured(np.ascontiguousarray(view), 1)
    nothing = masks.prune_24_measured(np.zeros((0, 8), np.float16), 1)
    assert nothing == masks.Measured(0, 0, 0, 0, 0, 0.0, 0.0)
    with pytest.raises(ValueError, match="no blocks"):
        masks.prune_24_measured(base, 5)
    with pytest.raises(TypeError, match="cannot be pruned"):
        masks.prune_24_measured(base.astype(np.int32), 1)


def test_an_array_that_is_24_already():
    once = masks.prune_24(sample((32, 32), np.float32, 9), 1)
    found = masks.prune_24_measured(once, 1)
    assert found.violating == 0 and found.energy == found.kept_energy
    assert found.zeros == np.count_nonzero(once == 0) >= 512


# --- the engines' choice -----------------------------------------------------------------------
def test_numba_must_be_there_if_it_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_numba, "available", lambda: False)
    array = sample((8, 8), np.float32, 1)
    with pytest.raises(ValueError, match=r"install onnx24\[fast\]"):
        masks.prune_24(array, 1, engine="numba")
    monkeypatch.setattr(masks, "_NUMBA_FROM", 0)
    np.testing.assert_array_equal(
        masks.prune_24(array, 1), masks.prune_24(array, 1, engine="numpy")
    )


def test_a_cache_that_cannot_be_written_is_done_without(monkeypatch: pytest.MonkeyPatch):
    numba = pytest.importorskip("numba", reason="the extra `fast` is not installed")
    real = numba.njit

    def njit(*args: object, **options: object):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return real(*args, **options)

    monkeypatch.setattr(numba, "njit", njit)
    assert _numba._jit(lambda x: x + 1)(1) == 2


# --- defects of other tools --------------------------------------------------------------------
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("axis", [0, 1])
def test_bfloat16_is_pruned_by_its_values(axis: int, engine: str):
    """`polygraphy surgeon prune` 0.53 zeroes places 1 and 2 of every four, whatever they hold."""
    rows = [[0.1, 3, -4, 0.2], [5, 0.1, 0.2, -6], [0.1, 0.2, 7, 8], [9, -9, 0.1, 0.2]]
    kept = [[0, 3, -4, 0], [5, 0, 0, -6], [0, 0, 7, 8], [9, -9, 0, 0]]
    array = np.array(rows, ml_dtypes.bfloat16)
    expected = np.array(kept, ml_dtypes.bfloat16)
    if axis == 0:
        array, expected = np.ascontiguousarray(array.T), np.ascontiguousarray(expected.T)
    pruned = masks.prune_24(array, axis, engine=engines(engine))
    assert pruned.tobytes() == expected.tobytes()


def test_bfloat16_is_checked_by_whole_values():
    """Its check of bfloat16 is wrong both ways: it reads bytes where values are meant, and its two
    loops share a variable. Here are values with a zero byte, and a -0."""
    dense = np.array([2, 2, 2, 0], ml_dtypes.bfloat16)
    assert not masks.is_24(dense, 0)
    tiny = np.array([1, 0x80, 0x0100, 0], np.uint16).view(ml_dtypes.bfloat16)  # a byte each
    assert masks.count_violations(tiny, 0) == 1
    assert masks.is_24(np.array([2, 0, -0.0, 2], ml_dtypes.bfloat16), 0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS, ids=NAMES.get)
def test_no_loop_over_groups_in_python(dtype: type):
    """Polygraphy prunes 0.6 M weights a second. A bound far below what is measured anywhere."""
    array = sample((4096, 1024), dtype, 3)
    masks.prune_24(array, 1, engine="numpy")
    start = time.process_time()
    masks.prune_24(array, 1, engine="numpy")
    assert array.size / (time.process_time() - start) > 20e6

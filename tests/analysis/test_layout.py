"""The layout algebra against numpy: where do the elements of a group of four lie?"""

from __future__ import annotations

import numpy as np
import pytest

from onnx24.analysis.layout import Layout, axis_with_stride


def factorizations(rng: np.random.Generator, size: int) -> tuple[int, ...]:
    """A random shape with `size` elements."""
    shape = []
    while size > 1 and len(shape) < 5:
        divisors = [d for d in range(1, size + 1) if size % d == 0]
        shape.append(int(rng.choice(divisors)))
        size //= shape[-1]
    return (*shape, size)


@pytest.mark.parametrize("seed", range(200))
def test_random_chains_against_numpy(seed: int):
    rng = np.random.default_rng(seed)
    size = int(rng.choice([16, 24, 48, 64, 96, 144]))
    shape = factorizations(rng, size)
    stored = np.arange(size).reshape(shape)
    layout, seen = Layout.of(shape), stored
    for _ in range(int(rng.integers(0, 5))):
        if rng.random() < 0.5:
            perm = tuple(int(p) for p in rng.permutation(seen.ndim))
            layout, seen = layout.transposed(perm), seen.transpose(perm)
        else:
            new = factorizations(rng, size)
            reshaped = layout.reshaped(new)
            assert reshaped is not None
            layout, seen = reshaped, seen.reshape(new)
        assert layout.shape == seen.shape
    for axis in range(seen.ndim):
        stride = layout.group_stride(axis)
        if seen.shape[axis] % 4:
            assert stride is None
            continue
        groups = np.moveaxis(seen, axis, -1).reshape(-1, 4)
        steps = np.unique(np.diff(groups, axis=1))
        if stride is None:
            # Not one distance, or groups that begin in the middle of a block.
            assert len(steps) > 1 or steps[0] < 0 or (groups[:, 0] // steps[0] % 4).any()
            continue
        assert steps.tolist() == [stride]
        blocks = np.arange(size).reshape(-1, 4, stride)
        expected = np.moveaxis(blocks, 1, -1).reshape(-1, 4)
        assert sorted(groups.tolist()) == sorted(expected.tolist())


def test_a_cycle_of_three_axes():
    layout = Layout.of((8, 4, 12)).transposed((1, 2, 0))
    assert layout.shape == (4, 12, 8)
    assert layout.group_stride(1) == 1
    assert layout.group_stride(2) == 48


def test_flat_kernel_of_a_convolution():
    # [O, C·R·S] as stored, [O, C, R, S] as read.
    layout = Layout.of((16, 8 * 9)).reshaped((16, 8, 3, 3))
    assert layout is not None
    assert layout.group_stride(1) == 9
    assert axis_with_stride((16, 72), 9) is None


def test_groups_that_straddle():
    # [2, 6] read as [12] steps evenly; its transpose read as [12] does not.
    flat = Layout.of((2, 6)).reshaped((12,))
    assert flat is not None and flat.group_stride(0) == 1
    straddling = Layout.of((2, 6)).transposed((1, 0)).reshaped((12,))
    assert straddling is not None and straddling.group_stride(0) is None
    cut = Layout.of((4, 6)).transposed((1, 0)).reshaped((8, 3))
    assert cut is not None and cut.shape == (8, 3)
    assert cut.group_stride(0) is None and cut.step(1) is None
    # Read as [4, 6] again, it is what it was.
    again = cut.reshaped((6, 4))
    assert again is not None and again.group_stride(1) == 6
    assert cut.reshaped((8, 4)) is None


def test_groups_that_a_cut_leaves_whole():
    # [12, 2].T rows of 12 read in eights: each four of them still lie in one row.
    cut = Layout.of((12, 2)).transposed((1, 0)).reshaped((3, 8))
    assert cut is not None and cut.group_stride(1) == 2


def test_scales_along_an_axis():
    layout = Layout.of((8, 16))
    assert layout.varies(1, 1) and not layout.varies(0, 1)
    assert layout.varies(0, 16) and not layout.varies(1, 16)
    assert not layout.varies(1, 1, block=4) and layout.varies(1, 1, block=2)
    assert layout.varies(1, 1, block=6)
    # Steps of 16 are no whole turns of 12.
    turning = Layout.of((32, 12))
    assert turning.varies(1, 16) and not turning.varies(1, 24)


def test_empty_tensors_are_refused():
    with pytest.raises(ValueError, match="no elements"):
        Layout.of((3, 0))

"""Flips and shifts: what is drawn, and what becomes of an image; normalising."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.blocked import OPTIMIZERS, flat, make, problem
from support.cifar10_files import tiny_dataset
from support.marks import needs_native

from fastmlp.data.splits import split_dataset
from fastmlp.data.transforms import (
    FlipShifts,
    RandomFlipShift,
    channel_statistics,
    image_shape,
    make_normalization,
    parse_augmentation,
)
from fastmlp.engines.eager import EagerEngine
from fastmlp.engines.registry import ENGINES
from fastmlp.ops.flip_shift import flip_shift, flip_shift_ref
from fastmlp.utils.errors import UserError

# ---- how it is written --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("none", None),
        ("flip", RandomFlipShift(True, 0)),
        ("shift:0", RandomFlipShift(False, 0)),
        ("shift:3", RandomFlipShift(False, 3)),
        ("shift:127", RandomFlipShift(False, 127)),
        ("flip,shift:4", RandomFlipShift(True, 4)),
        ("flip,shift:012", RandomFlipShift(True, 12)),
    ],
)
def test_augmentations_are_parsed(text, want):
    assert parse_augmentation(text) == want


@pytest.mark.parametrize(
    "text",
    [
        *("", ",", "flip,", ",flip", "flipflip", "flip,flip", " flip", "flip ", "flip\n", "Flip"),
        *("shift", "shift:", "shift:-1", "shift:3.0", "shift: 3", "shift:a", "shift:128"),
        *("shift:999", "shift:1000", "shift:٣", "shift:3\n", ",shift:3", "shift:3,"),
        *("flipshift:3", "flip,,shift:3", "flip;shift:3", "flip, shift:3", "shift:3,flip"),
        *("flip,shift", "flip,shift:", "flip,shift:128", "shift:3,shift:3", "none,flip", "None"),
    ],
)
def test_what_is_no_augmentation_is_refused(text):
    with pytest.raises(
        ValueError, match="augment must be none, flip, shift:N or flip,shift:N"
    ) as e:
        parse_augmentation(text)
    assert repr(text) in str(e.value)


@pytest.mark.parametrize(
    ("features", "want"),
    [
        *((3072, (3, 32, 32)), (784, (1, 28, 28)), (1, (1, 1, 1)), (3, (3, 1, 1)), (4, (1, 2, 2))),
        *((12, (3, 2, 2)), (16, (1, 4, 4)), (2, None), (5, None), (3071, None), (3073, None)),
    ],
)
def test_the_shape_of_an_image(features, want):
    assert image_shape(features) == want


# ---- what is drawn ------------------------------------------------------------------------------


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shift", [0, 1, 3, 6])
def test_all_moves_are_drawn_about_as_often(flip, shift):
    moves = RandomFlipShift(flip, shift).draw(7000, (3, 7, 8), generator())
    assert moves.shape == (3, 7, 8)
    assert moves.values.dtype == torch.int8
    assert moves.values.shape == (7000, 3)
    assert moves.values.is_contiguous()
    count = 2 * shift + 1
    for column in (0, 1):
        values, counts = moves.values[:, column].unique(return_counts=True)
        assert values.tolist() == list(range(-shift, shift + 1))
        # Five standard deviations of a count.
        assert (counts - 7000 / count).abs().max() <= 5 * (7000 / count) ** 0.5
    flips = moves.values[:, 2]
    assert set(flips.tolist()) == ({0, 1} if flip else {0})
    assert not flip or abs(int(flips.sum()) - 3500) < 5 * 1750**0.5


def test_the_largest_shift_fits_its_numbers():
    values = RandomFlipShift(False, 127).draw(20000, (1, 128, 128), generator()).values
    assert (int(values.min()), int(values.max())) == (-127, 127)


def test_rows_columns_and_flips_are_drawn_apart():
    values = RandomFlipShift(True, 3).draw(4000, (1, 9, 9), generator()).values.double()
    correlation = torch.corrcoef(values.t()) - torch.eye(3)
    assert correlation.abs().max() < 0.08


def test_the_same_generator_draws_the_same():
    augmentation = RandomFlipShift(True, 3)
    one, same = (augmentation.draw(50, (3, 9, 9), generator(1)).values for _ in range(2))
    other = augmentation.draw(50, (3, 9, 9), generator(2)).values
    random = generator(1)
    first, next_epoch = (augmentation.draw(50, (3, 9, 9), random).values for _ in range(2))
    assert torch.equal(one, same)
    assert torch.equal(one, first)
    assert not torch.equal(one, other)
    assert not torch.equal(one, next_epoch)


def test_images_too_small_for_a_shift_are_refused():
    RandomFlipShift(True, 3).draw(5, (3, 4, 9), generator())
    for shape in ((3, 3, 9), (3, 9, 3), (1, 1, 1)):
        with pytest.raises(
            ValueError, match=f"{shape[1]} x {shape[2]} cannot be shifted by 3 pixels"
        ):
            RandomFlipShift(True, 3).draw(5, shape, generator())


def test_some_of_the_moves():
    moves = RandomFlipShift(True, 3).draw(20, (3, 9, 8), generator())
    some = moves[5:9]
    assert some.shape == (3, 9, 8)
    assert torch.equal(some.values, moves.values[5:9])
    images = torch.randint(0, 256, (20, 216), dtype=torch.uint8)
    assert torch.equal(some.apply(images[5:9]), moves.apply(images)[5:9])


# ---- what becomes of an image -------------------------------------------------------------------

SHAPES = [
    *((3, 32, 32), (1, 28, 28), (1, 1, 1), (3, 1, 1), (2, 2, 2), (1, 1, 9), (1, 9, 1)),
    *((3, 5, 7), (4, 7, 5), (1, 3, 17), (2, 16, 3), (1, 2, 64), (3, 33, 31), (1, 128, 130)),
]


def every_move(height, width):
    """All corners, all small shifts, and some at random; with and without a flip."""
    down, right = min(height - 1, 127), min(width - 1, 127)
    pairs = [(y, x) for y in (-down, 0, down) for x in (-right, 0, right)]
    pairs += [(y, x) for y in (-1, 1) for x in (-1, 1) if down and right]
    for _ in range(12):
        pairs.append([int(torch.randint(-most, most + 1, ())) for most in (down, right)])
    moves = [(*pair, flip) for pair in pairs for flip in (0, 1)]
    return torch.tensor(moves, dtype=torch.int8)


def moved_by_numpy(images, moves, shape):
    """Flipped, mirrored at the edges as np.pad does it, and cut out."""
    height, width = shape[1:]
    moved = []
    for image, (down, right, flip) in zip(images.numpy(), moves.tolist(), strict=True):
        pixels = image.reshape(shape)
        pixels = np.flip(pixels, 2) if flip else pixels
        y, x = abs(down), abs(right)
        padded = np.pad(pixels, ((0, 0), (y, y), (x, x)), mode="reflect")
        moved.append(padded[:, y - down :, x - right :][:, :height, :width].reshape(-1))
    return torch.from_numpy(np.stack(moved))


def operators():
    return [flip_shift_ref, pytest.param(flip_shift, marks=needs_native)]


@pytest.mark.parametrize("operator", operators())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_images_are_moved_as_numpy_would(operator, shape):
    moves = every_move(*shape[1:])
    images = torch.randint(0, 256, (len(moves), np.prod(shape)), dtype=torch.uint8)
    before = images.clone()
    moved = operator(images, moves, shape)
    assert moved.dtype == torch.uint8
    assert torch.equal(moved, moved_by_numpy(images, moves, shape))
    assert torch.equal(images, before)
    assert torch.equal(FlipShifts(moves, shape).apply(images), moved)
    assert torch.equal(FlipShifts(moves, shape).apply(images, reference=True), moved)


@pytest.mark.parametrize("operator", operators())
def test_no_images(operator):
    images, moves = torch.empty(0, 12, dtype=torch.uint8), torch.empty(0, 3, dtype=torch.int8)
    assert operator(images, moves, (3, 2, 2)).shape == (0, 12)


def test_a_picture_to_look_at():
    image = torch.tensor([[1, 2, 3, 4, 5, 6]], dtype=torch.uint8)  # (1, 2, 3)
    for move, want in {
        (0, 0, 0): [1, 2, 3, 4, 5, 6],
        (0, 0, 1): [3, 2, 1, 6, 5, 4],
        (0, 1, 0): [2, 1, 2, 5, 4, 5],
        (0, 1, 1): [2, 3, 2, 5, 6, 5],
        (1, 0, 0): [4, 5, 6, 1, 2, 3],
        (0, -2, 0): [3, 2, 1, 6, 5, 4],
    }.items():
        moved = FlipShifts(torch.tensor([move], dtype=torch.int8), (1, 2, 3)).apply(image)
        assert moved.tolist() == [want], move


@needs_native
def test_threads_do_not_change_a_pixel(threads):
    moves = RandomFlipShift(True, 4).draw(500, (3, 9, 9), generator())
    images = torch.randint(0, 256, (500, 243), dtype=torch.uint8)
    runs = []
    for count in (1, 2, 3):
        threads(count)
        runs.append(moves.apply(images))
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


@needs_native
def test_what_does_not_fit_is_refused():
    images, shape = torch.zeros(4, 18, dtype=torch.uint8), [2, 3, 3]
    moves = torch.zeros(4, 3, dtype=torch.int8)
    for column, shift in ((0, 3), (0, -3), (1, 3), (1, -128)):
        far = moves.clone()
        far[3, column] = shift
        with pytest.raises(RuntimeError, match="moves must shift an image by less than its height"):
            flip_shift(images, far, shape)
    far = moves.clone()
    far[3, 1] = 3
    with pytest.raises(RuntimeError, match="less than its height and width"):
        flip_shift(images, far, [1, 6, 3])  # higher than wide
    with pytest.raises(RuntimeError, match="moves must have size 4 in dimension 0"):
        flip_shift(images, moves[1:], shape)
    with pytest.raises(RuntimeError, match="moves must have size 3 in dimension 1"):
        flip_shift(images, moves[:, 1:].clone(), shape)
    with pytest.raises(RuntimeError, match="moves has the wrong dtype"):
        flip_shift(images, moves.long(), shape)
    with pytest.raises(RuntimeError, match="with as many pixels as an image, 18"):
        flip_shift(images, moves, [3, 3, 3])
    with pytest.raises(RuntimeError, match=r"shape must be \(planes, height, width\)"):
        flip_shift(images, moves, [6, 3])
    with pytest.raises(RuntimeError, match="images has the wrong dtype"):
        flip_shift(images.float(), moves, shape)
    with pytest.raises(RuntimeError, match="images must be contiguous"):
        flip_shift(images.t().contiguous().t(), moves, shape)


@needs_native
def test_opcheck():
    moves = RandomFlipShift(True, 2).draw(9, (3, 4, 5), generator())
    images = torch.randint(0, 256, (9, 60), dtype=torch.uint8)
    torch.library.opcheck(
        torch.ops.fastmlp.flip_shift.default, (images, moves.values, list(moves.shape))
    )


# ---- the engines --------------------------------------------------------------------------------


@needs_native
@pytest.mark.parametrize("options", [{}, OPTIMIZERS["all"]], ids=["plain", "all"])
@pytest.mark.parametrize("hidden", [(19,), (12, 7)])
@pytest.mark.parametrize("order", [torch.arange(100) * 7 % 100, torch.arange(90) % 13], ids=len)
def test_all_engines_train_on_the_same_pictures(options, hidden, order, threads):
    threads(1)
    data = problem(images=100, inputs=3 * 5 * 5)
    ends, still = [], make(EagerEngine, data, {"batch_size": 8, **options}, hidden, torch.float64)
    still.train_epoch(order, 0.01)
    for name in ENGINES:
        engine = make(ENGINES[name], data, {"batch_size": 8, **options}, hidden, torch.float64)
        random = generator()
        for _ in range(2):
            moves = RandomFlipShift(True, 2).draw(len(order), (3, 5, 5), random)
            stats = engine.train_epoch(order, 0.01, flip_shifts=moves)
        ends.append((flat(engine), stats))
    for state, stats in ends[1:]:
        assert stats.correct == ends[0][1].correct
        for name, tensor in ends[0][0].items():
            torch.testing.assert_close(state[name], tensor, rtol=1e-10, atol=1e-12)
    assert any((flat(still)[name] - ends[0][0][name]).abs().max() > 1e-3 for name in flat(still))


# ---- normalising --------------------------------------------------------------------------------


@pytest.fixture
def dataset():
    return tiny_dataset()


def test_unit_divides_by_255(dataset):
    images = dataset.images.flatten(1)
    found = make_normalization("unit", images).apply(images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, images.float() / 255, rtol=1e-6, atol=0)


def test_standard_is_of_each_channel_of_the_training_part(dataset):
    train = split_dataset(dataset).train.images
    planes = train.numpy().reshape(-1, 3, 1024).astype(np.float64)
    mean, std = planes.mean((0, 2)), planes.std((0, 2))
    normalization = make_normalization("standard", train)
    images = dataset.images.flatten(1)[70:75]
    expected = (images.numpy().reshape(5, 3, 1024) - mean[:, None]) / std[:, None]
    found = normalization.apply(images)
    np.testing.assert_allclose(found.numpy(), expected.reshape(5, -1), rtol=0, atol=1e-6)
    assert torch.equal(normalization.apply(images[0]), found[0])
    assert images.dtype == torch.uint8
    assert normalization.scale.shape == normalization.shift.shape == (3072,)


def test_statistics_are_exact_and_a_constant_channel_has_one():
    images = torch.tensor([[0, 255, 7, 7, 1, 2], [255, 0, 7, 7, 3, 4]], dtype=torch.uint8)
    means, deviations = channel_statistics(images)
    assert means == [127.5, 7.0, 2.5]
    assert deviations == [127.5, 1.0, 1.25**0.5]
    assert channel_statistics(images[:, :4]) == (
        [67.25],
        [pytest.approx(images[:, :4].double().std(correction=0).item())],
    )


def test_normalization_refuses_another_name_and_dtype(dataset):
    images = dataset.images.flatten(1)
    with pytest.raises(UserError, match="normalize must be unit or standard, got 'max'"):
        make_normalization("max", images)
    with pytest.raises(TypeError, match=r"images must be uint8, got torch.float32"):
        make_normalization("unit", images).apply(images.float())

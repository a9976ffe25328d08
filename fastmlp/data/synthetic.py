"""Draw the built-in synthetic set: ten procedural classes of 32x32 colour images.

Each image shows one shape or texture at a random place, size and angle, in two random colours, the
pattern darker than the ground in three images of ten, under uneven light and noise. The colours are
drawn without regard to the class: only the form tells the classes apart, of which a linear model
makes little and a small MLP much. Measured on 30,000 images to train on and 10,000 others to test
(Adam, 15 epochs): softmax regression 28 %, a 3072-256-10 ReLU MLP 92 %.

The bytes depend on the seed alone, not on the machine, the number of threads or the version of
NumPy: the randomness is the raw stream of PCG64, and every operation on it is an integer operation
or a correctly rounded float32 one (no sin, no exp, no sum whose order may vary).
"""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # float32; NumPy's annotations lose that in arithmetic with Python numbers
Form = Callable[[Array, Array], Array]

SIDE = 32
"""Height and width of an image in pixels."""
CHUNK = 1000
"""Images made at a time, each chunk from its own random stream, an equal number of each class."""

RADIUS = (6.5, 12.0)  # of a shape, or a period and a bit of a texture, in pixels
OFFSET = 5.0  # largest distance of a shape's centre from the image's, along x and along y
TILT = 1.0  # largest tangent of the angle a shape is turned by
DARK, LIGHT = (0.0, 130.0), (125.0, 255.0)  # each channel of the two colours
DARK_PATTERNS = 0.3  # share of images whose pattern is drawn in the dark colour
SLOPE = 3.0  # largest change of the light per pixel, along x and along y
NOISE = (20.0, 90.0)  # half the range of the noise on every value; uniform within one image


def generate(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images (count, 3, 32, 32) uint8 and labels (count,) int64, indices of CLASSES.

    The same seed gives the same bytes; a larger ``count`` only adds to the end.
    """
    chunks = -(-count // CHUNK)
    images = np.empty((chunks, CHUNK, 3, SIDE, SIDE), np.uint8)
    labels = np.empty((chunks, CHUNK), np.int64)

    def fill(chunk: int) -> None:
        _fill_chunk(np.random.PCG64([seed, chunk]), images[chunk], labels[chunk])

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy's loops run without the GIL
        list(pool.map(fill, range(chunks)))
    return images.reshape(-1, 3, SIDE, SIDE)[:count], labels.reshape(-1)[:count]


def warning(reason: str) -> str:
    """Return a boxed warning that this set stands in for CIFAR-10, and why."""
    paragraphs = (
        "THIS IS NOT CIFAR-10",
        reason,
        "The built-in synthetic set is used instead: drawn shapes and textures. Its accuracies say"
        " nothing about CIFAR-10.",
        "To get CIFAR-10: python -m fastmlp.data download, or name the folder that holds it:"
        " $FASTMLP_DATA, data_dir=FOLDER in Python, --data-dir FOLDER in a command. To stop where"
        ' it is missing: dataset="cifar10", --dataset cifar10. To use the synthetic set without'
        ' this box: dataset="synthetic", --dataset synthetic.',
    )
    wrapper = textwrap.TextWrapper(84, break_long_words=False, break_on_hyphens=False)
    lines = [line for text in paragraphs for line in ("", *wrapper.wrap(text))] + [""]
    width = max(map(len, lines))
    edge = "#" * (width + 6)
    return "\n".join([edge, *(f"#  {line:{width}}  #" for line in lines), edge])


def _fill_chunk(
    random: np.random.PCG64, images: NDArray[np.uint8], labels: NDArray[np.int64]
) -> None:
    order = np.argsort(random.random_raw(CHUNK), kind="stable").reshape(len(CLASSES), -1)
    for label, places in enumerate(order):
        images[places] = _draw(_FORMS[CLASSES[label]], len(places), random)
        labels[places] = label


def _draw(form: Form, count: int, random: np.random.PCG64) -> NDArray[np.uint8]:
    """Draw images (count, 3, 32, 32) of one class."""
    across, down, size, tilt, slope_x, slope_y, strength, choice = _uniform(random, 8, count, 1, 1)
    dark_colour, light_colour = (
        low + (high - low) * _uniform(random, count, 3, 1, 1) for low, high in (DARK, LIGHT)
    )

    # From pixels to the frame of the shape: its centre at 0, its radius 1, turned.
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32) - (SIDE - 1) / 2
    radius = RADIUS[0] + (RADIUS[1] - RADIUS[0]) * size
    tangent = TILT * (2 * tilt - 1)
    cosine = 1 / (np.sqrt(1 + tangent * tangent) * radius)
    sine = tangent * cosine
    dx, dy = x - OFFSET * (2 * across - 1), y - OFFSET * (2 * down - 1)
    distance = form(cosine * dx + sine * dy, cosine * dy - sine * dx)

    # The edge is one pixel wide: the pattern covers what lies inside, the ground the rest.
    cover = np.clip(0.5 - distance * radius, 0, 1)[:, None]
    light = SLOPE * ((2 * slope_x - 1) * x + (2 * slope_y - 1) * y)
    is_dark = (choice < DARK_PATTERNS)[:, None]
    ground = np.where(is_dark, light_colour, dark_colour)
    pattern = np.where(is_dark, dark_colour, light_colour)

    noise = random.random_raw(count * 3 * SIDE * SIDE // 8).astype("<u8").view(np.uint8)
    amplitude = (NOISE[0] + (NOISE[1] - NOISE[0]) * strength)[:, None]
    values = noise.reshape(count, 3, SIDE, SIDE).astype(np.float32)
    values -= 127.5
    values *= amplitude / 127.5
    values += ground
    values += (pattern - ground) * cover
    values += light[:, None]
    return np.clip(values, 0, 255, out=values).astype(np.uint8)


def _uniform(random: np.random.PCG64, *shape: int) -> Array:
    """Draw float32 multiples of 2**-16 in [0, 1)."""
    count = math.prod(shape)
    words = random.random_raw(-(-count // 4)).astype("<u8").view("<u2")
    return words[:count].reshape(shape).astype(np.float32) / 65536.0


def _length(u: Array, v: Array) -> Array:
    length: Array = np.sqrt(u * u + v * v)
    return length


def _box(u: Array, v: Array, half_width: float, half_height: float) -> Array:
    distance: Array = np.maximum(np.abs(u) - half_width, np.abs(v) - half_height)
    return distance


def _wave(t: Array) -> Array:
    """Return a triangle wave of period 1 between -1 and 1."""
    wave: Array = 4 * np.abs(t - np.floor(t) - 0.5) - 1
    return wave


# A shape is the distance to its edge (in radii, below 0 inside) at the point (u, v) of its frame, v
# downwards. A texture fills the image: below 0 on its pattern, and about as steep where it ends.
_FORMS: dict[str, Form] = {
    "circle": lambda u, v: _length(u, v) - 1,
    "square": lambda u, v: _box(u, v, 0.9, 0.9),
    "triangle": lambda u, v: np.maximum(0.866 * np.abs(u) - 0.5 * v, v) - 0.62,
    "ring": lambda u, v: np.abs(_length(u, v) - 0.8) - 0.25,
    "cross": lambda u, v: np.minimum(_box(u, v, 1, 0.3), _box(u, v, 0.3, 1)),
    "crescent": lambda u, v: np.maximum(_length(u, v) - 1, 0.85 - _length(u - 0.5, v)),
    "stripes": lambda u, v: 0.25 * _wave(1.1 * u),
    "checkerboard": lambda u, v: 0.4 * _wave(u) * _wave(v),
    "dots": lambda u, v: 0.25 * _length(1 - _wave(1.1 * u), 1 - _wave(1.1 * v)) - 0.24,
    "chevrons": lambda u, v: 0.25 * _wave(1.1 * u + 0.6 * _wave(0.5 * v)),
}
CLASSES: tuple[str, ...] = tuple(_FORMS)

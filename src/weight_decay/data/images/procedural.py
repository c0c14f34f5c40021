"""An unlimited, CIFAR-like image classification task: ten shapes, generated from (seed, index) alone.

The arithmetic uses only operations that IEEE 754 rounds exactly (+ - * / sqrt floor, comparisons) and
integer hashing, one NumPy call each, so an image is the same byte for byte on every platform and in
every chunking. That is why rotations are rational and gratings are parabolic waves: a library's sin and
cos may differ by a last place. `GENERATOR_VERSION` must rise with any change of the bytes.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, ClassVar

import numpy as np
from tqdm import tqdm

from weight_decay.config.groups import ImageData
from weight_decay.config.registry import DATA
from weight_decay.config.schema import require
from weight_decay.data import splitmix
from weight_decay.data.images.cifar5m import KIND, ORIGIN_NAME, convert_cifar5m, load_cifar5m
from weight_decay.data.images.cifar5m_parts import PARTS
from weight_decay.data.images.image_set import ImageSet
from weight_decay.data.manifest import made_once, require_space
from weight_decay.errors import UserError
from weight_decay.runs.files import replacing, write_text

NAME = "procedural"
GENERATOR_VERSION = 1
CLASS_NAMES = ("disc", "ring", "square", "frame", "triangle", "cross", "two bars", "crescent", "T", "L")
# Index of the first test image: far beyond any training index, and the same for every training size.
TEST_START = 2**40
_CHUNK = 256
_BLOCK = 8192

Field = np.ndarray  # float32 (n, size, size)


class _Draws:
    """Numbered random draws, one value per image; draw j of an image is a hash of (seed, index, j)."""

    def __init__(self, seed: int, indices: np.ndarray):
        self.keys, self.count = splitmix.keys(seed, indices), 0

    def words(self) -> np.ndarray:
        self.count += 1
        return splitmix.draw(self.keys, self.count - 1)

    def uniform(self, low: float, high: float) -> np.ndarray:
        """Float32 (n, 1, 1) in [low, high)."""
        unit = (self.words() >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
        return (unit * np.float32(high - low) + np.float32(low))[:, None, None]

    def sign(self) -> np.ndarray:
        """-1 or 1, float32 (n, 1, 1)."""
        return ((self.words() >> np.uint64(63)).astype(np.float32) * 2 - 1)[:, None, None]


def _turn(half_tangent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of the angle whose half has this tangent."""
    square = half_tangent * half_tangent
    return (1 - square) / (1 + square), 2 * half_tangent / (1 + square)


def _wave(phase: Field) -> Field:
    """A parabolic stand-in for sin(2π·phase), in [-1, 1]."""
    x = (phase - np.floor(phase)) * 2 - 1
    return x * 4 * (1 - np.abs(x))


def _box(u: Field, v: Field, left: float, right: float, top: float, bottom: float) -> Field:
    half_width, half_height = (right - left) / 2, (bottom - top) / 2
    return np.maximum(np.abs(u - (left + right) / 2) - half_width, np.abs(v - (top + bottom) / 2) - half_height)


def _radius(u: Field, v: Field) -> Field:
    return np.sqrt(u * u + v * v)


# Signed distances (negative inside) in the shape's own frame, which spans [-1, 1]; v points down.
_SHAPES: tuple[Callable[[Field, Field], Field], ...] = (
    lambda u, v: _radius(u, v) - 0.9,
    lambda u, v: np.abs(_radius(u, v) - 0.7) - 0.24,
    lambda u, v: _box(u, v, -0.82, 0.82, -0.82, 0.82),
    lambda u, v: np.abs(_box(u, v, -0.66, 0.66, -0.66, 0.66)) - 0.22,
    lambda u, v: np.maximum(np.abs(u) * 0.875 - (v + 0.2) * 0.5, v + 0.2) - 0.55,
    lambda u, v: np.minimum(_box(u, v, -0.95, 0.95, -0.28, 0.28), _box(u, v, -0.28, 0.28, -0.95, 0.95)),
    lambda u, v: np.abs(np.abs(v) - 0.55) - 0.27 + np.maximum(np.abs(u) - 0.9, 0) * 4,
    lambda u, v: np.maximum(_radius(u + 0.1, v) - 0.95, 0.72 - _radius(u - 0.42, v)),
    lambda u, v: np.minimum(_box(u, v, -0.9, 0.9, -0.9, -0.36), _box(u, v, -0.27, 0.27, -0.9, 0.9)),
    lambda u, v: np.minimum(_box(u, v, -0.75, -0.2, -0.9, 0.9), _box(u, v, -0.75, 0.75, 0.36, 0.9)),
)


def procedural_images(seed: int, indices: np.ndarray, size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels at these indices: uint8 (n, size, size, 3) and int64 (n,).

    A pure function of (seed, index, size), alike in any chunking. Labels are uniform and never noisy;
    what makes the task hard is rotation (±0.3 rad), scale, aspect, position, colours, contrast,
    gratings, shading, an occluding bar (half of the images) and pixel noise.

    Raises:
        UserError: a negative seed, or a size below 8.
    """
    if seed < 0 or size < 8:
        raise UserError(f"Procedural images need a seed ≥ 0 and a size ≥ 8, not {seed} and {size}.")
    images = np.empty((len(indices), size, size, 3), dtype=np.uint8)
    labels = np.empty(len(indices), dtype=np.int64)
    for start in range(0, len(indices), _CHUNK):
        part = slice(start, start + _CHUNK)
        images[part], labels[part] = _chunk_of_images(seed, indices[part], size)
    return images, labels


def _chunk_of_images(seed: int, indices: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    draws = _Draws(seed, indices)
    labels = ((draws.words() >> np.uint64(32)) * np.uint64(len(CLASS_NAMES)) >> np.uint64(32)).astype(np.int64)
    # Pixel centres in [-1, 1], whatever the size.
    line = (np.arange(size, dtype=np.float32) * 2 + np.float32(1 - size)) / np.float32(size)
    x, y = line[None, None, :], line[None, :, None]
    pixel = np.float32(2.0 / size)

    cover = _object_cover(draws, labels, x, y, pixel)
    bar = _occluding_bar(draws, x, y, pixel)
    # Positive inside bright zones of two textures: one behind the object, one on it.
    behind, upon = _grating(draws, x, y), _grating(draws, x, y)
    shade = draws.uniform(-0.35, 0.35) * x + draws.uniform(-0.35, 0.35) * y + 1
    contrast = draws.uniform(52, 125) * draws.sign()
    noise_level = draws.uniform(4, 17)
    noise = _noise(draws, size)

    texture = behind + (upon - behind) * cover
    out = np.empty((len(indices), size, size, 3), dtype=np.uint8)
    for channel in range(3):
        background = draws.uniform(50, 205)
        # A step away from the background that is the same sign in every channel, but not the same size.
        step = contrast * draws.uniform(0.5, 1)
        bar_colour = draws.uniform(20, 235)
        value = (background + step * cover + texture) * shade
        value = value + (bar_colour - value) * bar
        value = value + noise[..., channel] * noise_level
        out[..., channel] = np.floor(np.minimum(np.maximum(value, 0), 255) + np.float32(0.5))
    return out, labels


def _object_cover(draws: _Draws, labels: np.ndarray, x: Field, y: Field, pixel: np.float32) -> Field:
    """How much of each pixel the object covers, 0 to 1."""
    cosine, sine = _turn(draws.uniform(-0.1511, 0.1511))  # tan(0.15): rotations of ±0.3 rad
    scale = draws.uniform(0.5, 0.9)
    aspect = draws.uniform(0.75, 1.25)
    room = 1 - scale
    x = x - draws.uniform(-1, 1) * room
    y = y - draws.uniform(-1, 1) * room
    # Aspect above 1 narrows the shape, below 1 flattens it, so it never outgrows its scale.
    u = (x * cosine + y * sine) / (scale * np.minimum(1, 1 / aspect))
    v = (y * cosine - x * sine) / (scale * np.minimum(1, aspect))
    distance = np.empty(u.shape, dtype=np.float32)
    for label, shape in enumerate(_SHAPES):
        members = np.flatnonzero(labels == label)
        distance[members] = shape(u[members], v[members])
    return _soft_edge(distance * scale / pixel)


def _occluding_bar(draws: _Draws, x: Field, y: Field, pixel: np.float32) -> Field:
    present = (draws.sign() + 1) / 2
    cosine, sine = _turn(draws.uniform(-1, 1))
    offset = draws.uniform(-0.6, 0.6)
    half_width = draws.uniform(0.06, 0.14)
    return _soft_edge((np.abs(x * cosine + y * sine - offset) - half_width) / pixel) * present


def _grating(draws: _Draws, x: Field, y: Field) -> Field:
    cosine, sine = _turn(draws.uniform(-1, 1))
    frequency = draws.uniform(0.5, 3)
    return _wave((x * cosine + y * sine) * frequency + draws.uniform(0, 1)) * draws.uniform(0, 23)


def _soft_edge(distance_in_pixels: Field) -> Field:
    return np.minimum(np.maximum(np.float32(0.5) - distance_in_pixels, 0), 1)


def _noise(draws: _Draws, size: int) -> np.ndarray:
    """Zero-mean noise of standard deviation 1, float32 (n, size, size, 3): two hashed bytes a value."""
    pixels = np.arange(1, size * size + 1, dtype=np.uint64) * np.uint64(splitmix.GAMMA)
    words = splitmix.mix(draws.words()[:, None] ^ pixels[None, :]).astype("<u8", copy=False)
    octets = words.view(np.uint8).reshape(len(words), size, size, 8)
    total = octets[..., 0:6:2].astype(np.float32) + octets[..., 1:6:2]
    return (total - 255) * np.float32(1 / 104.5)


def write_procedural_cifar5m(target: Path, seed: int, rows_per_part: int, size: int, progress: bool = False) -> None:
    """Write CIFAR-5m's own six npz files, part0.npz to part5.npz, and `origin.json` that says who made them.

    Parts 0-4 hold images 0, 1, 2, ... in order and part 5 the images from `TEST_START` on, so a
    longer file starts with the shorter one: training sets nest and the test set stays the same.
    Memory is flat.

    Raises:
        UserError: fewer than one row, or what `procedural_images` refuses.
    """
    if rows_per_part < 1:
        raise UserError(f"{rows_per_part} rows per part were asked for; choose at least 1.")
    target.mkdir(parents=True, exist_ok=True)
    origin = {"name": NAME, "generator_version": GENERATOR_VERSION, "seed": seed}
    write_text(target / ORIGIN_NAME, json.dumps(origin))
    with tqdm(total=PARTS * rows_per_part, unit="image", desc="procedural", disable=not progress) as bar:
        for number in range(PARTS):
            first = TEST_START if number == PARTS - 1 else number * rows_per_part
            with replacing(target / f"part{number}.npz") as handle:
                _write_part(handle, seed, first, rows_per_part, size, bar)


def _write_part(handle: IO[bytes], seed: int, first: int, rows: int, size: int, bar: tqdm) -> None:
    labels = np.empty(rows, dtype=np.int64)
    with zipfile.ZipFile(handle, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("X.npy", "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": (rows, size, size, 3)}
            np.lib.format.write_array_header_1_0(member, header)
            for start in range(0, rows, _BLOCK):
                stop = min(start + _BLOCK, rows)
                images, labels[start:stop] = procedural_images(seed, np.arange(first + start, first + stop), size)
                member.write(images.tobytes())
                bar.update(stop - start)
        with archive.open("Y.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, labels, allow_pickle=False)


def ensure_procedural(root: Path, seed: int, size: int, train_images: int, test_images: int) -> Path:
    """The prepared CIFAR-5m-format folder under `root` that holds these procedural images, made if absent.

    The first `train_images` of the training parts and the first `test_images` of part 5 are the same
    for every folder of one (seed, size). Processes that start at once wait for the first to finish;
    a damaged folder is made again.

    Raises:
        UserError: a count below 1, or what `procedural_images` and `convert_cifar5m` refuse.
    """
    if train_images < 1 or test_images < 1:
        raise UserError(f"Procedural data needs at least 1 image, not {train_images} train and {test_images} test.")
    rows = max(-(-train_images // (PARTS - 1)), test_images)
    folder = root / f"procedural-v{GENERATOR_VERSION}-seed{seed}-size{size}-rows{rows}"

    def make() -> None:
        for left_by_a_kill in root.glob(f".{folder.name}.*/"):
            shutil.rmtree(left_by_a_kill, ignore_errors=True)
        # The parts and their conversion exist side by side for a while.
        require_space("data.root", root, 2 * PARTS * rows * (3 * size * size + 8), "fewer images")
        with tempfile.TemporaryDirectory(dir=root, prefix=f".{folder.name}.") as work:
            npz, converted = Path(work) / "npz", Path(work) / "converted"
            write_procedural_cifar5m(npz, seed, rows, size)
            convert_cifar5m(npz, converted, progress=False, part_rows=rows)
            converted.replace(folder)

    return made_once(folder, KIND, make)


@DATA.add("procedural")
@dataclass(frozen=True)
class ProceduralData(ImageData):
    """Shapes drawn as a function of (seed, index), made on first use."""

    drawn: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("train_size", "test_size"):
            said = getattr(self, name) is not None
            require(said, f"{name}: the procedural generator is endless, so say how many images")

    def load(self, split: str) -> ImageSet:
        """The first `train_size` or `test_size` images of a split, as memory maps."""
        assert self.train_size is not None and self.test_size is not None
        folder = ensure_procedural(Path(self.root), self.seed, self.image_size, self.train_size, self.test_size)
        whole = load_cifar5m(folder, split, self.test_size)
        return whole.first(self.train_size) if split == "train" else whole

"""Synthetic anomaly generation: an auxiliary data set from normal images.

An anomaly is drawn on a random square part of the image, so that its relative
size varies, and blended in with a random strength. Masks contain exactly the
pixels that changed visibly; all others are unchanged.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from zsad_jax.datasets import meta_json, preprocess
from zsad_jax.datasets.synthetic import defects
from zsad_jax.datasets.synthetic.shapes import Number
from zsad_jax.runtime import file_names, files, progress

Photo = np.ndarray  # Float32 (h, w, 3) in [0, 1].
Kind = Callable[[Photo, np.ndarray, np.random.Generator, Photo], Photo]


@dataclasses.dataclass(frozen=True)
class Ranges:
  """Ranges of the random parameters of an image.

  Attributes:
    kinds: of anomalies, keys of `KINDS`.
    number: of anomalies per image, least and greatest.
    size: side of the square that an anomaly is drawn on, as a fraction of the
      image's shorter side.
    strength: opacity.
  """

  kinds: tuple[str, ...]
  number: tuple[int, int] = (1, 2)
  size: tuple[float, float] = (0.4, 1.0)
  strength: tuple[float, float] = (0.6, 1.0)

  def __post_init__(self) -> None:
    if unknown := sorted(set(self.kinds) - KINDS.keys()):
      raise ValueError(
        f"There is no kind of anomaly {unknown[0]!r}; there are "
        f"{', '.join(KINDS)}."
      )
    for name, least, most in (
      ("number", 1, 20),
      ("size", 0.05, 1),
      ("strength", 0.05, 1),
    ):
      low, high = getattr(self, name)
      if not least <= low <= high <= most:
        raise ValueError(
          f"{name} must be two numbers from {least} to {most}, the smaller "
          f"one first; got {low}, {high}."
        )


def _blended(image: Photo, color: Photo, share: np.ndarray) -> Photo:
  return image + (color - image) * share[..., None]


def _patch(
  sheet: defects.Sheet, rng: np.random.Generator, low: Number, high: Number
) -> np.ndarray:
  """Return the coverage of an irregular patch, `low` to `high` in radius."""
  return sheet.cover(sheet.blob(rng.uniform(low, high), 0.35), 2)


def perlin(
  image: Photo, region: np.ndarray, rng: np.random.Generator, other: Photo
) -> Photo:
  """Blend another texture in where noise of several octaves is high (DRAEM)."""
  sheet = defects.Sheet(image, region, rng)
  noise = sum(sheet.noise(24 / 2**i) / 2**i for i in range(4))
  near = np.exp(-((np.hypot(sheet.x, sheet.y) / 30) ** 2))
  share = np.clip((noise * near - 0.25) * 6, 0, 1) * rng.uniform(0.5, 1)
  return _blended(image, _texture(other, image.shape[:2], rng), share)


def cut_paste(
  image: Photo, region: np.ndarray, rng: np.random.Generator, other: Photo
) -> Photo:
  """Paste a rotated rectangle of another image, recoloured (CutPaste)."""
  sheet = defects.Sheet(image, region, rng)
  angle = rng.uniform(0, np.pi)
  x = sheet.x * np.cos(angle) + sheet.y * np.sin(angle)
  y = sheet.y * np.cos(angle) - sheet.x * np.sin(angle)
  wide, tall = rng.uniform(4, 16), rng.uniform(3, 10)
  share = sheet.cover(np.maximum(np.abs(x) - wide, np.abs(y) - tall), 0.5)
  patch = _texture(other, image.shape[:2], rng)
  return _blended(image, patch * np.float32(rng.uniform(0.8, 1.2)), share)


def missing_part(
  image: Photo, region: np.ndarray, rng: np.random.Generator, other: Photo
) -> Photo:
  """Fill a patch smoothly with the colours along its border."""
  del other
  sheet = defects.Sheet(image, region, rng)
  share = _patch(sheet, rng, 5, 13)
  outside = (share < 0.05).astype(np.float32)
  sigma = 5 * sheet.unit
  blur = lambda v: ndimage.gaussian_filter(v, (sigma, sigma, 0), truncate=8)
  fill = blur(image * outside[..., None]) / (blur(outside[..., None]) + 1e-6)
  shade = np.float32(rng.uniform(0.55, 0.9))
  return _blended(image, fill * shade, share)


def misplaced_part(
  image: Photo, region: np.ndarray, rng: np.random.Generator, other: Photo
) -> Photo:
  """Shift the content of a patch."""
  del other
  sheet = defects.Sheet(image, region, rng)
  share = _patch(sheet, rng, 7, 15)
  angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(6, 14) * sheet.unit
  rows, cols = (int(far * f(angle)) for f in (np.sin, np.cos))
  moved = np.roll(image, (rows, cols), axis=(0, 1))
  return _blended(image, moved, share)


def _texture(
  other: Photo, shape: tuple[int, int], rng: np.random.Generator
) -> Photo:
  """Return a rotated, stretched part of another image, of this shape."""
  turned = np.rot90(other, int(rng.integers(4)))
  low = [int(rng.integers(0, max(1, s // 2))) for s in turned.shape[:2]]
  part = turned[low[0] :, low[1] :]
  image = Image.fromarray((255 * part).astype(np.uint8))
  resized = image.resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
  return np.asarray(resized, np.float32)[..., rng.permutation(3)] / 255


def _overlay(draw: defects.Overlay) -> Kind:
  return lambda image, region, rng, other: draw(image, region, rng)


KINDS: dict[str, Kind] = {
  **{name: _overlay(draw) for name, draw in defects.OVERLAYS.items()},
  **{
    draw.__name__: draw
    for draw in (perlin, cut_paste, missing_part, misplaced_part)
  },
}


def add_anomalies(
  image: Photo,
  region: np.ndarray,
  other: Photo,
  kind: str,
  ranges: Ranges,
  rng: np.random.Generator,
) -> tuple[Photo, np.ndarray]:
  """Add anomalies of one kind to an image.

  Args:
    image: the normal image.
    region: float32 (h, w) in [0, 1], where anomalies may be.
    other: another image, the source of textures and patches.
    kind: a key of `KINDS`.
    ranges: of number, size and strength.
    rng: random numbers; the same give the same image.

  Returns:
    The anomalous image and its mask, uint8 (h, w) in {0, 1}; the image is
    unchanged wherever the mask is 0.

  Raises:
    ValueError: no visible anomaly fits in `defects.ATTEMPTS` attempts.
  """
  mask = np.zeros(image.shape[:2], np.uint8)
  wanted = int(rng.integers(ranges.number[0], ranges.number[1] + 1))
  for _ in range(defects.ATTEMPTS):
    part = _part(image.shape[:2], region, ranges, rng)
    before, inside = image[part], region[part]
    drawn = KINDS[kind](before, inside, rng, other)
    share = inside * np.float32(rng.uniform(*ranges.strength))
    after = np.clip(_blended(before, drawn, share), 0, 1).astype(np.float32)
    after = np.round(255 * after) / np.float32(255)
    found = defects.changed(before, after)
    if not defects.fits(found):
      continue
    image = image.copy()
    image[part] = np.where(found[..., None] == 1, after, before)
    mask[part] |= found
    wanted -= 1
    if not wanted:
      break
  if not mask.any():
    raise ValueError(
      f"No visible {kind} in {defects.ATTEMPTS} attempts; try larger "
      "ranges of size or strength."
    )
  return image, mask


def _part(
  shape: tuple[int, int],
  region: np.ndarray,
  ranges: Ranges,
  rng: np.random.Generator,
) -> tuple[slice, slice]:
  """Return a random square that overlaps the region, as slices."""
  side = max(32, int(min(shape) * rng.uniform(*ranges.size)))
  side = min(side, *shape)
  for _ in range(defects.ATTEMPTS):
    top, left = (int(rng.integers(0, s - side + 1)) for s in shape)
    part = slice(top, top + side), slice(left, left + side)
    if (region[part] > 0.5).mean() > 0.05:
      return part
  return slice(0, shape[0]), slice(0, shape[1])


def foreground(image: Photo) -> np.ndarray:
  """Segment the object on an even background.

  The colour along the borders of the image is taken as background.

  Args:
    image: the image.

  Returns:
    float32 (h, w) in [0, 1], 1 on the object; 1 everywhere for a texture.
  """
  border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
  if border.std(axis=0).max() > 0.08:
    return np.ones(image.shape[:2], np.float32)
  away = np.abs(image - np.median(border, axis=0)).max(axis=-1)
  sigma = 1.5 * min(away.shape) / 112
  above = ndimage.gaussian_filter(away, sigma) > 0.06
  inside = np.asarray(ndimage.binary_fill_holes(above))
  if not 0.05 < inside.mean() < 0.9:
    return np.ones(image.shape[:2], np.float32)
  return ndimage.gaussian_filter(inside.astype(np.float32), sigma)


def synthesize(
  images: Sequence[str],
  output: Path,
  *,
  class_name: str,
  per_image: int,
  num_references: int,
  ranges: Ranges,
  seed: int,
) -> list[tuple[str, str, str]]:
  """Write an auxiliary data set in MVTec AD's layout, with `meta.json`.

  The images appear all at once; after an interruption there are none.

  Args:
    images: paths of normal images.
    output: a new folder.
    class_name: name of the object or texture.
    per_image: anomalous copies of each image.
    num_references: images that are kept as references, evenly spaced in the
      order of `images`, in the train part and without anomalous copies.
    ranges: of the random parameters.
    seed: of all random numbers.

  Returns:
    Kind, image and mask of every anomalous image.

  Raises:
    FileExistsError: `output` is not empty.
    ValueError: an image cannot be read, no visible anomaly fits, or all images
      are references.
  """
  if num_references >= len(images):
    raise ValueError(
      f"--references={num_references} leaves none of the {len(images)} normal "
      "images for anomalies; give more images or fewer references."
    )
  if any(file_names.safe_name(n) != n for n in class_name.split("/")):
    raise ValueError(
      f"--class_name={class_name!r} is no name of a folder on every system; "
      "give another one."
    )
  first = class_name.split("/")[0]
  draft_prefix = files.draft_prefix(output / first)
  names = os.listdir(output) if output.exists() else []
  if not all(name.startswith(draft_prefix) for name in names):
    raise FileExistsError(f"{output} is not empty; name a new folder.")
  photos = [_load(path) for path in images]
  kept = {i * len(photos) // num_references for i in range(num_references)}
  references = [photos[i] for i in sorted(kept)]
  photos = [photo for i, photo in enumerate(photos) if i not in kept]
  with files.draft(output / first) as draft:
    records, written = _draw(photos, draft, class_name, per_image, ranges, seed)
    for i, photo in enumerate(references):
      path = f"{class_name}/train/good/{i:04d}.png"
      _save(draft / path, photo)
      records["train"][class_name].append(_record(path, "", class_name, "good"))
    os.rename(draft / first, output / first)
  text = json.dumps(records, indent=1, ensure_ascii=False) + "\n"
  # Last: it marks the data set as complete.
  files.write_text(output / meta_json.META, text)
  return [
    (kind, str(output / image), str(output / mask))
    for kind, image, mask in written
  ]


def _draw(photos, output, class_name, per_image, ranges, seed):
  """Write the images; return records, and kind, image and mask of each.

  The paths are relative to `output`.
  """
  records = {"train": {class_name: []}, "test": {class_name: []}}
  written, counts = [], dict.fromkeys(ranges.kinds, 0)
  reported = progress.Progress("Synthesis", len(photos))
  for i, photo in enumerate(photos):
    # Methods are trained on the test part of a data set.
    path = f"{class_name}/test/good/{i:04d}.png"
    _save(output / path, photo)
    records["test"][class_name].append(_record(path, "", class_name, "good"))
    region = foreground(photo)
    for copy in range(per_image):
      rng = np.random.default_rng((seed, i, copy))
      kind = ranges.kinds[(i * per_image + copy) % len(ranges.kinds)]
      other = photos[int(rng.integers(len(photos)))]
      anomalous, mask = add_anomalies(photo, region, other, kind, ranges, rng)
      name = f"{counts[kind]:04d}"
      counts[kind] += 1
      path = f"{class_name}/test/{kind}/{name}.png"
      mask_path = f"{class_name}/ground_truth/{kind}/{name}_mask.png"
      _save(output / path, anomalous)
      _save(output / mask_path, mask)
      records["test"][class_name].append(
        _record(path, mask_path, class_name, kind)
      )
      written.append((kind, path, mask_path))
    reported.add(1)
  return records, written


def _record(
  path: str, mask_path: str, class_name: str, kind: str
) -> dict[str, str | int]:
  return {
    "img_path": path,
    "mask_path": mask_path,
    "cls_name": class_name,
    "specie_name": kind,
    "anomaly": int(bool(mask_path)),
  }


def _load(path: str) -> Photo:
  return np.asarray(preprocess.open_image(path), np.float32) / 255


def _save(path: Path, pixels: np.ndarray) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  if pixels.dtype == np.uint8:
    pixels = 255 * pixels
  else:
    pixels = np.round(255 * pixels).astype(np.uint8)
  Image.fromarray(pixels).save(path)

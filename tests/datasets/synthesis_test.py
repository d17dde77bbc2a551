"""Synthetic anomalies: masks, arguments and files."""

import numpy as np
import pytest
from PIL import Image

from zsad_jax.datasets import duplicates, preprocess, registry
from zsad_jax.datasets.synthetic import benchmark, defects, preview, synthesis
from zsad_jax.runtime import files


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """Six normal images of two sizes: a texture and an object."""
  folder = tmp_path_factory.mktemp("good")
  for i in range(3):
    for name, size in (("marble", 112), ("gear", 130)):
      pixels, _ = benchmark.draw(name, index=i, size=size)
      Image.fromarray(pixels).save(folder / f"{name}{i}.png")
  return sorted(map(str, folder.iterdir()))


def load(path):
  return np.asarray(Image.open(path), np.float32) / 255


@pytest.mark.parametrize("kind", synthesis.KINDS)
def test_masks_hold_exactly_the_changed_pixels(kind, photos):
  image, other = load(photos[0]), load(photos[-1])
  region = synthesis.foreground(image)
  ranges = synthesis.Ranges((kind,), number=(1, 1))
  make = lambda seed: synthesis.add_anomalies(
    image, region, other, kind, ranges, np.random.default_rng(seed)
  )
  anomalous, mask = make(3)
  assert mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 1}
  np.testing.assert_array_equal(anomalous[mask == 0], image[mask == 0])
  differs = np.abs(anomalous - image).max(-1) > 0.8 * defects.VISIBLE
  assert differs[mask == 1].mean() > 0.5
  again, same = make(3)
  np.testing.assert_array_equal(anomalous, again)
  np.testing.assert_array_equal(mask, same)
  assert (make(4)[0] != anomalous).any()


def test_the_object_is_found_and_a_texture_is_everywhere(photos):
  gear, marble = load(photos[0]), load(photos[-1])
  inside = synthesis.foreground(gear)
  assert 0.1 < inside.mean() < 0.8
  assert inside[:4].max() < 0.1 and inside[40:90, 40:90].mean() > 0.8
  assert synthesis.foreground(marble).min() == 1


def test_a_set_is_written_and_read_back(photos, tmp_path):
  ranges = synthesis.Ranges(("scratch", "cut_paste", "hole"))
  make = lambda folder: synthesis.synthesize(
    photos,
    folder,
    class_name="part",
    per_image=2,
    num_references=0,
    ranges=ranges,
    seed=1,
  )
  written = make(tmp_path / "a")
  assert len(written) == 12
  found = registry.read_folder(tmp_path / "a")
  assert found.counts == (0, 6, 12) and found.class_names == ("part",)
  assert {s.specie_name for s in found.test} == {"good", *ranges.kinds}
  for sample in found.test:
    image, mask = preprocess.open_pair(sample)
    assert image.size in ((112, 112), (130, 130))
    assert bool(mask.getbbox()) == bool(sample.label)
  duplicates.check_dataset(found, published=False)
  assert preview.draw(written).size == (960, 3 * 184)
  again = make(tmp_path / "b")
  for (_, *one), (_, *other) in zip(written, again):
    for a, b in zip(one, other):
      assert open(a, "rb").read() == open(b, "rb").read()
  with pytest.raises(FileExistsError, match="not empty"):
    make(tmp_path / "a")


@pytest.mark.parametrize("count", [1, 4])
def test_references_are_kept_apart(photos, tmp_path, count):
  make = lambda folder, number: synthesis.synthesize(
    photos,
    folder,
    class_name="part",
    per_image=1,
    num_references=number,
    ranges=synthesis.Ranges(("hole",)),
    seed=1,
  )
  rest = len(photos) - count
  assert len(make(tmp_path / "a", count)) == rest
  found = registry.read_folder(tmp_path / "a")
  assert found.counts == (count, rest, rest)
  kept = sorted(
    np.asarray(preprocess.open_image(s.image_path)).tobytes()
    for s in (*found.train, *(s for s in found.test if not s.label))
  )
  assert kept == sorted(
    np.asarray(preprocess.open_image(path)).tobytes() for path in photos
  )
  with pytest.raises(ValueError, match="--references=6 leaves none of the 6"):
    make(tmp_path / "b", len(photos))


def test_an_interrupted_set_has_no_images(photos, tmp_path, monkeypatch):
  output, draw = tmp_path / "set", synthesis.add_anomalies

  def make():
    synthesis.synthesize(
      photos[:1],
      output,
      class_name="kind/part",
      per_image=1,
      num_references=0,
      ranges=synthesis.Ranges(("hole",)),
      seed=1,
    )

  def interrupted(*args):
    assert not [p for p in output.iterdir() if p.name[0] != "."]
    raise KeyboardInterrupt

  monkeypatch.setattr(synthesis, "add_anomalies", interrupted)
  with pytest.raises(KeyboardInterrupt):
    make()
  assert not [*output.iterdir()]
  # A killed process leaves its draft.
  (output / (files.draft_prefix(output / "kind") + "x")).mkdir()
  monkeypatch.setattr(synthesis, "add_anomalies", draw)
  make()
  assert {p.name for p in output.iterdir()} == {"kind", "meta.json"}
  assert registry.read_folder(output).counts == (0, 1, 1)


def test_ranges_out_of_range_are_named():
  with pytest.raises(ValueError, match="no kind of anomaly 'dust'"):
    synthesis.Ranges(("dust",))
  for wrong in (
    dict(number=(2, 1)),
    dict(size=(0.0, 1.0)),
    dict(strength=(0.5, 2.0)),
  ):
    with pytest.raises(ValueError, match=next(iter(wrong))):
      synthesis.Ranges(("hole",), **wrong)


def test_an_invisible_anomaly_is_an_error(photos):
  image = load(photos[0])
  ranges = synthesis.Ranges(("stain",), strength=(0.05, 0.05))
  with pytest.raises(ValueError, match="No visible stain"):
    synthesis.add_anomalies(
      image,
      np.ones(image.shape[:2], np.float32),
      image,
      "stain",
      ranges,
      np.random.default_rng(0),
    )

"""People's own folders: nested, mixed, without masks; nothing is lost."""

import os

import numpy as np
import pytest
from PIL import Image

from zsad_jax.datasets import meta_json, preprocess, references, registry


def write(path, pixels=None, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  if pixels is None:
    pixels = np.full((8, 8, 3), 90, np.uint8)
  Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def nested(tmp_path):
  """MVTec's layout, classes at different depths."""
  for name in ("metal/nut", "metal/screws/long", "wood"):
    for part in ("train/good", "test/good", "test/crack"):
      write(tmp_path / "parts" / name / part / "0.png")
  return tmp_path / "parts"


def test_classes_may_lie_deep(nested):
  found = registry.open_dataset(str(nested))
  assert found.class_names == ("metal/nut", "metal/screws/long", "wood")
  assert found.counts == (3, 3, 3) and not found.has_masks
  assert registry.prompt_names(found)[1] == "metal screws long"
  text = meta_json.dumps(found, str(nested))
  (nested / meta_json.META).write_text(text, encoding="utf-8")
  again = registry.open_dataset(str(nested))
  assert again.class_names == found.class_names
  assert (again.train, again.test) == (found.train, found.test)


def test_references_of_deep_classes(nested, tmp_path):
  found = registry.open_dataset(str(nested))
  for name in found.class_names:
    write(tmp_path / "normal" / name / "a.png")
  chosen = references.read(tmp_path / "normal", found)
  assert set(chosen.images) == {*found.class_names}
  write(tmp_path / "normal/glass/a.png")
  with pytest.raises(ValueError, match="'glass', which is no class of parts"):
    references.read(tmp_path / "normal", found)


def test_plain_classes_with_subfolders(tmp_path):
  for name in ("cap", "lid"):
    write(tmp_path / name / "normal/monday/0.png")
    write(tmp_path / name / "normal/tuesday/0.png")
    write(tmp_path / name / "anomalous/dent/1.png")
    write(tmp_path / name / "masks/dent/1_mask.png")
  found = registry.open_dataset(str(tmp_path))
  assert found.class_names == ("cap", "lid") and found.counts == (0, 4, 2)
  assert found.has_masks and all(sample.has_mask for sample in found.test)


def test_masks_that_belong_to_no_image_are_not_passed_over(tmp_path):
  write(tmp_path / "normal/0.png")
  write(tmp_path / "anomalous/1.png")
  write(tmp_path / "masks/one.png")
  with pytest.raises(ValueError, match="1.png: anomalous, but no mask has its"):
    registry.open_dataset(str(tmp_path))


def test_formats_names_and_links(tmp_path):
  folder, grey = tmp_path / "Fotos ß/normal", np.full((6, 9), 90, np.uint8)
  colour = np.repeat(grey[..., None], 3, axis=2)
  for name in ("a.PNG", "b.jpeg", "c.BMP", "d.tif", "e.WebP"):
    write(folder / name, colour)
  write(folder / "grey.png", grey)
  write(folder / "deep.png", grey.astype(np.uint16) * 257)
  write(folder / "alpha.png", np.dstack([colour, grey]))
  Image.fromarray(colour).quantize(4).save(folder / "palette.png")
  exif = Image.Exif()
  exif[0x0112] = 6  # To be turned by a quarter.
  write(folder / "turned.jpg", colour, exif=exif)
  os.symlink(folder / "a.PNG", folder / "link.png")  # The same image.
  found = registry.open_dataset(str(tmp_path / "Fotos ß"))
  assert found.counts == (0, 10, 0) and found.class_names == ("Fotos ß",)
  for sample in found.test:
    image = preprocess.open_image(sample.image_path)
    turned = sample.image_path.endswith("turned.jpg")
    assert image.mode == "RGB" and image.size == ((6, 9) if turned else (9, 6))
    np.testing.assert_allclose(np.asarray(image), 90, atol=2)

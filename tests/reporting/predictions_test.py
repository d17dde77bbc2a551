"""Names of the result files of `predict`."""

import os
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from zsad_jax.datasets import image_files
from zsad_jax.reporting import predictions


def test_names_of_results_do_not_collide(tmp_path):
  for name in ("a/x.png", "b/x.png", "b/y.png", "b/y.jpg"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(tmp_path / name)
  images = image_files.find([str(tmp_path)])
  assert len(images) == 4
  assert sorted(predictions.output_names(images)) == [
    "a_x",
    "b_x",
    "b_y.jpg",
    "b_y.png",
  ]
  again = image_files.find([str(tmp_path), str(tmp_path / "*/x.png")])
  assert again == images  # Each once.


parts = st.sampled_from(
  ("a", "b", "a_b", "x" * 120, "ß" * 100, "100%", "it's", "x\ny", "A", "con")
) | st.text("ab_-.é\udcdf", min_size=1, max_size=5).filter(
  lambda n: set(n) != {"."}
)
images = st.lists(
  st.tuples(
    st.lists(parts, max_size=3), parts, st.sampled_from(("png", "JPG"))
  ),
  min_size=1,
  max_size=8,
)


@settings(max_examples=50)
@given(images, st.randoms())
@example([(["a"], "b", "png"), ([], "a_b", "png")], random.Random(0))
def test_every_image_has_result_files_of_its_own(found, order):
  paths = list(
    dict.fromkeys("/".join(["/d", *f, f"{n}.{e}"]) for f, n, e in found)
  )
  names = predictions.output_names(paths)
  assert len({name.casefold() for name in names}) == len(paths)
  for name in names:
    assert os.path.basename(name) == name and name.strip(".")
    assert len(f".{name}_overlay.png.1234567.tmp".encode()) <= 255
  shuffled = order.sample(paths, len(paths))
  again = dict(zip(shuffled, predictions.output_names(shuffled)))
  assert [again[path] for path in paths] == names


@pytest.mark.parametrize("result", ["1_overlay.png", "1_mask.png"])
def test_no_result_replaces_an_image(tmp_path, result):
  images = [str(tmp_path / n) for n in ("1.png", result)]
  for path in images:
    Image.new("RGB", (8, 8)).save(path)
  with pytest.raises(ValueError, match=f"{result} is an image that is"):
    predictions.check_replaces_no_image(tmp_path, images)
  predictions.check_replaces_no_image(tmp_path / "other", images)

"""Images are the same by file and by content, and have one role."""

import collections
import dataclasses
import functools
import pathlib
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsad_jax.datasets import duplicates, index

# Long enough that beginnings and ends of different contents are equal.
CONTENTS = [
  b"",
  b"a",
  b"b",
  b"ab",
  b"x" * 40000,
  b"x" * 20000 + b"y" + b"x" * 19999,
]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(CONTENTS), min_size=1, max_size=8), st.data())
def test_paths_of_equal_content_are_one_image(contents, data):
  with tempfile.TemporaryDirectory() as folder:
    root, expected = pathlib.Path(folder), collections.defaultdict(set)
    for i, content in enumerate(contents):
      path = root / f"{i}.png"
      path.write_bytes(content)
      key = content or i  # Empty files are no images, and not equal.
      expected[key].add(str(path))
      if data.draw(st.booleans()):
        (root / f"link{i}.png").symlink_to(path)
        expected[key].add(str(root / f"link{i}.png"))
        expected[key].add(f"{root}/./{i}.png")
    paths = sorted(set().union(*expected.values()))
    found = collections.defaultdict(set)
    for path, number in duplicates.classes(paths).items():
      found[number].add(path)
    assert sorted(map(sorted, found.values())) == sorted(
      map(sorted, expected.values())
    )
    once, copies = duplicates.distinct(paths)
    assert len(once) == len(expected) and {*once, *copies} == {*paths}


def test_parts_of_a_file_and_missing_files_are_different(tmp_path):
  file = tmp_path / "a.png"
  file.write_bytes(b"a")
  paths = [
    index.part(file, (0, 0, 4, 4)),
    index.part(file, (4, 0, 8, 4)),
    str(file),
    str(tmp_path / "none1.png"),
    str(tmp_path / "none2.png"),
    f"{index.BUILT}x/test/0/image",
    f"{index.BUILT}x/test/1/image",
  ]
  assert len({*duplicates.classes(paths).values()}) == len(paths)


def dataset(folder, train, test):
  """Data set of files by content; `test` has a label for each."""
  folder.mkdir()

  def sample(i, content, label):
    path = folder / f"{i}.png"
    path.write_bytes(content)
    return index.Sample(str(path), "", "nut", "", label)

  train = [sample(f"train{i}", c, 0) for i, c in enumerate(train)]
  test = [sample(i, *each) for i, each in enumerate(test)]
  return index.make_dataset("parts", folder, train=train, test=test)


def test_an_image_has_one_role(tmp_path):
  check = duplicates.check_dataset
  good = dataset(tmp_path / "good", [b"1"], [(b"2", 0), (b"3", 1)])
  assert check(good, published=False) == []
  for name, train, test, roles in (
    ("a", [b"1"], [(b"2", 0), (b"2", 1)], "normal and anomalous"),
    ("b", [b"1"], [(b"1", 1)], "normal and anomalous"),
    ("c", [b"1"], [(b"1", 0)], "a training and a test image"),
  ):
    both = dataset(tmp_path / name, train, test)
    with pytest.raises(ValueError, match=roles):
      check(both, published=False)
    (note,) = check(both, published=True)
    assert roles in note and "1 images" in note


def test_repeated_images_and_masks_are_noted(tmp_path):
  check = functools.partial(duplicates.check_dataset, published=False)
  copies = dataset(tmp_path / "copies", [], [(b"1", 0), (b"1", 0), (b"2", 1)])
  (note,) = check(copies)
  assert "1 test images are copies" in note
  good = dataset(tmp_path / "good", [], [(b"1", 0), (b"2", 1), (b"3", 1)])
  twice = dataclasses.replace(good, test=(*good.test, good.test[0]))
  (note,) = check(twice)
  assert "1 test images are listed again" in note
  masked = [
    dataclasses.replace(s, mask_path="m.png" if s.label else "")
    for s in good.test
  ]
  (note,) = check(dataclasses.replace(good, test=tuple(masked)))
  assert "1 masks belong to several images, first m.png" in note


def test_an_image_in_two_lists_is_named(tmp_path):
  for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
    (tmp_path / name).write_bytes(content)
  a, b, c = (str(tmp_path / name) for name in "abc")
  duplicates.refuse([a], [c], "is both.")
  with pytest.raises(ValueError, match=r"a is both\."):
    duplicates.refuse([a], [a], "is both.")
  with pytest.raises(ValueError, match=r"a \(as .*b\) is both\."):
    duplicates.refuse([a], [c, b], "is both.")

"""How reference images are sampled, read and refused."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.helpers import small_run
from zsad_jax.datasets import layouts, references

# The first four raw numbers of torch.randint for each official seed, and the
# positions that AdaptCLIP's authors get for two classes.
RAW = {
  10: (3312796937, 1283169405, 89128932, 2124247567),
  20: (2526002531, 3811404250, 3855651087, 4099169503),
  30: (2766575397, 3938390437, 1635302317, 937406253),
}
KNOWN = {209: [10, 111, 46, 200], 900: [437, 705, 132, 67]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("parts")
  small_run.write_mvtec(folder)
  return layouts.read_mvtec(folder)


@pytest.mark.parametrize("count, expected", KNOWN.items())
def test_positions_are_the_authors(count, expected):
  assert references.indices(count, 4, 10) == expected
  for seed in references.SEEDS:
    raw = [number % count for number in RAW[seed]]
    assert references.indices(count, 4, seed) == raw


@given(st.integers(1, 4000), st.integers(1, 8), st.integers(0, 2**31))
def test_fewer_references_are_the_first_of_more(count, shots, seed):
  more = references.indices(count, shots + 1, seed)
  assert more[:-1] == references.indices(count, shots, seed)
  assert all(0 <= i < count for i in more)


def test_a_sample_is_of_the_class_and_from_its_training_images(data):
  chosen = references.sample(data, shots=3, seed=10)
  for name, images in chosen.images.items():
    pool = [s.image_path for s in data.train if s.class_name == name]
    assert list(images) == [pool[i] for i in references.indices(5, 3, 10)]
  assert chosen.label == "3-shot_seed10" and not chosen.notes
  assert references.sample(data, shots=0, seed=10) == references.NONE


def test_test_images_are_references_by_a_published_protocol_alone(tmp_path):
  small_run.write_images(tmp_path / "cells")
  cells = layouts.read_plain(tmp_path / "cells")
  with pytest.raises(ValueError, match="'cells' has no normal training images"):
    references.sample(cells, shots=2, seed=10)
  normal = [s.image_path for s in cells.test if s.label == 0]
  for seed in range(5):
    chosen = references.sample(cells, shots=2, seed=seed, from_test="normal")
    assert set(chosen.left_out) == set(chosen.images["cells"]) <= set(normal)
    assert "normal ones, and are not scored" in chosen.notes[0]
    assert not chosen.official
    assert references.check(chosen, cells, published=False) == chosen
  official = references.sample(cells, shots=2, seed=10, from_test="all")
  pool = [s.image_path for s in cells.test]
  wanted = [pool[i] for i in references.indices(len(pool), 2, 10)]
  assert list(official.images["cells"]) == wanted and official.official
  assert "anomalous ones included" in official.notes[0]


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("label, word", [(0, "scored"), (1, "anomalous")])
def test_a_test_image_is_no_reference(data, tmp_path, label, word, copied):
  images = {name: tuple(paths(data, name)[:1]) for name in data.class_names}
  bad = next(s.image_path for s in data.test if s.label == label)
  if copied:
    bad = shutil.copy(bad, tmp_path / "other.png")
  given = references.References({**images, "nut": (str(bad),)}, 1)
  with pytest.raises(ValueError, match=f"is a reference of .* and {word}"):
    references.check(given, data, published=False)
  assert references.check(given, data, published=True).notes
  good = references.References(images, 1)
  assert references.check(good, data, published=False) == good


def test_more_than_there_are(data):
  with pytest.raises(ValueError, match="6 references of 'bolt'.*5 images"):
    references.sample(data, shots=6, seed=10)


def paths(data, name):
  return [s.image_path for s in data.train if s.class_name == name]


def test_a_folder_and_a_file_are_read_alike(data, tmp_path):
  listed = {name: paths(data, name)[:2] for name in data.class_names}
  (tmp_path / "list.json").write_text(json.dumps(listed))
  found = references.read(tmp_path / "list.json", data)
  assert found.images == {n: tuple(p) for n, p in listed.items()}
  assert (
    found.shots == 2 and found.seed is None and found.label == "2-shot-given"
  )
  for name in data.class_names:
    (tmp_path / "folder" / name).mkdir(parents=True)
    for i in range(1 + len(name) % 2):
      file = tmp_path / "folder" / name / f"{i}.png"
      Image.new("RGB", (40, 40)).save(file)
  found = references.read(tmp_path / "folder", data)
  assert {n: len(p) for n, p in found.images.items()} == {"bolt": 1, "nut": 2}
  assert found.shots is None and found.label == "given"


@pytest.mark.parametrize(
  "change, error, message",
  [
    ({"screw": ["a"]}, FileNotFoundError, "a does not exist"),
    ({"screw": "nut"}, ValueError, "'screw'.*no class.*bolt, nut"),
    ({"nut": []}, ValueError, "no reference of class 'nut'"),
    ({"nut": "bolt"}, ValueError, "reference of 'nut', but shows 'bolt'"),
  ],
)
def test_mistakes_in_a_list_are_named(data, tmp_path, change, error, message):
  listed = {name: paths(data, name)[:1] for name in data.class_names}
  for name, value in change.items():
    listed[name] = paths(data, value) if isinstance(value, str) else value
  file = tmp_path / "list.json"
  file.write_text(json.dumps(listed))
  with pytest.raises(error, match=message):
    references.read(file, data)


def test_an_image_that_is_listed_twice_is_one_reference(data, tmp_path):
  listed = {name: paths(data, name)[:1] * 2 for name in data.class_names}
  (tmp_path / "list.json").write_text(json.dumps(listed))
  found = references.read(tmp_path / "list.json", data)
  assert all(len(images) == 1 for images in found.images.values())


def test_what_is_no_list_is_named(data, tmp_path):
  one = '"' + paths(data, "nut")[0] + '"'
  for text in ("[", "[1]", '{"nut": 3}', f'{{"nut": {one}}}', '{"nut": [3]}'):
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(ValueError, match="list.json: expected JSON"):
      references.read(tmp_path / "list.json", data)
  with pytest.raises(FileNotFoundError, match="neither a folder nor"):
    references.read(tmp_path / "nothing", data)

"""Tests of index files: ours, their authors', and what is refused."""

import json
import os

import pytest

from tests.helpers.index_files import names, record, touch, write_meta
from zsad_jax.datasets import index, meta_json, pipeline, registry
from zsad_jax.types import ANOMALOUS


def test_meta_is_read_in_file_order(tmp_path):
  touch(*(tmp_path / name for name in ("b.png", "a.png", "m.png", "ü.PNG")))
  write_meta(
    tmp_path,
    {
      "train": {"nut": [record("ü.PNG")]},
      "test": {
        "nut": [
          record(
            "b.png", 1, mask_path="m.png", specie_name="cut", view_id="C1"
          ),
          record("a.png"),
        ]
      },
    },
  )
  data = meta_json.read(tmp_path)
  assert names(data.test) == ["b.png", "a.png"]
  assert names(data.train) == ["ü.PNG"]
  assert data.test[0] == index.Sample(
    str(tmp_path / "b.png"),
    str(tmp_path / "m.png"),
    "nut",
    "cut",
    ANOMALOUS,
    view="C1",
  )
  assert (data.name, data.class_names) == (tmp_path.name, ("nut",))
  assert data.counts == (1, 1, 1) and data.has_masks and not data.notes


@pytest.mark.parametrize(
  "content",
  [
    {"Test": {"nut": [record("a.png", 1)]}, "TRAIN": {}},
    {"test": {"nut": [record("a.png", 1)]}},
    {"test": {"nut": [record("a.png", 1, mask_path=None)]}, "train": None},
    {"test": {"nut": [record("a.png", 1, mask_path="folder")]}},
    {"test": {"nut": [record("a.png", 1, mask_path="/gone/data/")]}},
    {"test": {"nut": [dict(img_path="a.png", anomaly=1, cls_id=3)]}},
  ],
)
def test_meta_tolerances(tmp_path, content):
  touch(tmp_path / "a.png", tmp_path / "folder" / "x.png")
  write_meta(tmp_path, content)
  data = meta_json.read(tmp_path)
  assert data.counts == (0, 0, 1)
  assert not data.has_masks and not data.test[0].has_mask


@pytest.mark.parametrize("prefix", ["/home/me/data", "C:\\data"])
def test_absolute_paths_are_rerooted_by_the_longest_ending(tmp_path, prefix):
  touch(tmp_path / "x" / "a.png", tmp_path / "a.png", tmp_path / "m" / "a.png")
  image, mask = f"{prefix}/x/a.png", f"{prefix}/m/a.png"
  write_meta(
    tmp_path,
    {
      "test": {
        "nut": [
          record(image, 1, mask_path=mask),
          record(str(tmp_path / "a.png")),
        ]
      }
    },
  )
  data = meta_json.read(tmp_path)
  assert data.test[0].image_path == str(tmp_path / "x" / "a.png")
  assert data.test[0].mask_path == str(tmp_path / "m" / "a.png")
  assert data.test[1].image_path == str(tmp_path / "a.png")
  assert "2 absolute paths were re-rooted" in data.notes[0]


@pytest.mark.parametrize(
  "content, message",
  [
    ("{", r"meta\.json: not valid JSON"),
    ("[]", "found list"),
    ({"train": {}}, r'keys "train" and "test", found \[\'train\'\]'),
    ({"test": []}, '"test" must map each class'),
    ({"test": {"nut": {}}}, r'test\["nut"\] must be a list'),
    ({"test": {"nut": ["a.png"]}}, r'test\["nut"\]\[0\] must be an object'),
    (
      {"test": {"nut": [record("a.png"), {"anomaly": 0}]}},
      r'record test\["nut"\]\[1\]: "img_path" must be .*found None',
    ),
    (
      {"test": {"nut": [{"img_path": "a.png"}]}},
      r'record test\["nut"\]\[0\]: "anomaly" must be 0 .*found None',
    ),
    ({"test": {"nut": [record("a.png", 2)]}}, '"anomaly" must be.*found 2'),
    ({"test": {"nut": [record("a.png", 1, mask_path=7)]}}, '"mask_path" must'),
    ({"test": {"nut": [record("../b.png")]}}, r"\[0\]\.img_path.*leaves the"),
    ({"test": {"nut": [record("x/../../b.png")]}}, "leaves the data root"),
    ({"test": {"nut": [record("/etc/passwd")]}}, "leaves the data root"),
    (
      {"test": {"nut": [record("a.png", 1, mask_path="../m.png")]}},
      r"mask_path.*leaves the data root",
    ),
    ({"test": {}}, "no test image"),
    ({"test": {" ": [record("a.png")]}}, "a class has no name"),
    ({"test": {}, "Test": {}}, "two keys differ in case only"),
    ({"test": {"nut": [record("a.png", specie_name=3)]}}, '"specie_name" must'),
    ({"test": {"nut": [record("a\0.png")]}}, "1 listed files do not exist"),
  ],
)
def test_meta_errors(tmp_path, content, message):
  touch(tmp_path / "a.png")
  write_meta(tmp_path, content)
  with pytest.raises(ValueError, match=message):
    meta_json.read(tmp_path)


def test_meta_counts_missing_files_and_names_some(tmp_path):
  touch(tmp_path / "a.png")
  write_meta(
    tmp_path,
    {
      "test": {
        "nut": [
          record("a.png", 1, mask_path="m.png"),
          *(record(f"{i}.png") for i in range(9)),
        ]
      }
    },
  )
  with pytest.raises(ValueError, match="10 listed files do not exist") as info:
    meta_json.read(tmp_path)
  message = str(info.value)
  assert f'test["nut"][0].mask_path: {tmp_path / "m.png"}' in message
  assert f'test["nut"][1].img_path: {tmp_path / "0.png"}' in message
  assert "7.png" not in message


NUT = (
  "train/good/0.png",
  "test/cut/0.png",
  "test/good/0.png",
  "ground_truth/cut/0_mask.png",
)
AUTHORS = {  # What their index files are like, as their generators write them.
  "AdaCLIP": {
    "train": {"nut": [record("nut/train/good/0.png", specie_name="")]},
    "test": {
      "nut": [
        record(
          "nut/test/cut/0.png",
          1,
          specie_name="cut",
          mask_path="nut/ground_truth/cut/0_mask.png",
        ),
        record("nut/test/good/0.png", specie_name="good"),
      ]
    },
  },
  "AnomalyCLIP's DAGM": {
    "Train": {"nut": [record("nut/train/good/0.png")]},
    "Test": {
      "nut": [
        record(
          "nut/test/cut/0.png", 1, mask_path="nut/ground_truth/cut/0_mask.png"
        ),
        record("nut/test/good/0.png"),
      ]
    },
  },
  "AnomalyCLIP's medical sets": {
    "train": {},
    "test": {
      "nut": [
        record(
          "/remote/share/set/nut/test/cut/0.png",
          1,
          mask_path="/remote/share/set/nut/ground_truth/cut/0_mask.png",
        ),
        record("/remote/share/set/nut/test/good/0.png"),
      ]
    },
  },
  "FAPrompt": {
    "train": {"nut": []},
    "test": {
      "nut": [
        record(
          "nut/test/cut/0.png",
          1,
          cls_name="nut",
          mask_path="nut/ground_truth/cut/0_mask.png",
        ),
        record("nut/test/good/0.png", mask_path=""),
      ]
    },
  },
  "AdaptCLIP": {
    "train": {"nut": [record("nut/train/good/0.png", view_id="C1")]},
    "test": {
      "nut": [
        record(
          "nut/test/cut/0.png",
          1,
          view_id="C1",
          mask_path="nut/ground_truth/cut/0_mask.png",
        ),
        record("nut/test/good/0.png", view_id="C1"),
      ]
    },
  },
}


@pytest.mark.parametrize("author", AUTHORS)
def test_the_authors_files_are_read(author, tmp_path):
  touch(*(tmp_path / "nut" / name for name in NUT))
  write_meta(tmp_path, AUTHORS[author])
  found = meta_json.read(tmp_path)
  assert found.counts[1:] == (1, 1) and found.class_names == ("nut",)
  cut, good = found.test
  assert cut.image_path == str(tmp_path / "nut/test/cut/0.png")
  assert cut.mask_path == str(tmp_path / "nut/ground_truth/cut/0_mask.png")
  assert good.mask_path == "" and good.has_mask


def test_the_authors_read_our_files(tmp_path):
  """Their readers take fixed keys and join paths to the root."""
  touch(*(tmp_path / "nut" / name for name in NUT))
  dataset = registry.read_folder(tmp_path)
  meta = json.loads(meta_json.dumps(dataset, str(tmp_path)))
  assert list(meta) == ["train", "test"]
  rows = [
    (part, name, row)
    for part, classes in meta.items()
    for name, listed in classes.items()
    for row in listed
  ]
  assert len(rows) == 3
  for part, name, row in rows:
    kinds = dict(
      img_path=str, mask_path=str, cls_name=str, specie_name=str, anomaly=int
    )
    assert {key: type(value) for key, value in row.items()} == kinds
    assert row["cls_name"] == name and row["anomaly"] in (0, 1)
    assert f"/{part}/" in row["img_path"]
    assert os.path.isfile(os.path.join(tmp_path, row["img_path"]))
    mask = os.path.join(tmp_path, row["mask_path"])
    # The root itself stands for "no mask".
    assert os.path.isfile(mask) if row["anomaly"] else os.path.isdir(mask)


def test_a_large_index_is_shuffled_and_sharded(tmp_path):
  """A step's images are a function of the step, however many there are."""
  folder = tmp_path / "nut" / "test" / "good"
  folder.mkdir(parents=True)
  rows = []
  for i in range(3_000):
    (folder / f"{i}.png").touch()
    rows.append(record(f"nut/test/good/{i}.png"))
  write_meta(tmp_path, {"train": {}, "test": {"nut": rows * 10}})
  found = meta_json.read(tmp_path)
  assert len(found.test) == 30_000
  numbers = pipeline.train_numbers([found], batch_size=8, seed=0, num_shards=2)
  first = next(numbers)["index"]
  assert len({*first}) == 4 and max(first) > 1000


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_meta_of_windows(encoding, tmp_path):
  touch(tmp_path / "nut/a.png", tmp_path / "nut/gt/a.png")
  record_of_windows = record("nut\\a.png", 1, mask_path="nut\\gt\\a.png")
  text = json.dumps({"test": {"nut": [record_of_windows]}})
  mark = "\ufeff" if encoding == "utf-16-be" else ""
  (tmp_path / "meta.json").write_bytes((mark + text).encode(encoding))
  (sample,) = meta_json.read(tmp_path).test
  assert sample.image_path == str(tmp_path / "nut/a.png")
  assert sample.mask_path == str(tmp_path / "nut/gt/a.png")


def test_a_class_that_is_listed_twice_is_refused(tmp_path):
  (tmp_path / "meta.json").write_text('{"test": {"nut": [], "nut": []}}')
  with pytest.raises(ValueError, match='the key "nut" is listed twice'):
    meta_json.read(tmp_path)

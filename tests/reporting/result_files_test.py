"""Files of one image and its row, read back and compared."""

import csv
import itertools
import json
import math
import os

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from tests.inference import regions_test
from zsad_jax.reporting import predictions, region_files, result_files
from zsad_jax.runs import detector as detector_lib
from zsad_jax.runs import threshold as threshold_lib

LIMITS = threshold_lib.Threshold(
  0.5, 0.0, 1.0, "", pixel=0.6, normal_scores=(0.1, 0.2, 0.2, 0.7)
)
WITHOUT = threshold_lib.Threshold(0.5, 0.0, 1.0, "")
RAW = np.random.default_rng(0).random((12, 12), np.float32)


def result(path, limits=LIMITS, name="x", size=(30, 40), zero_shot_score=None):
  Image.new("RGB", size[::-1], (80, 90, 100)).save(path)
  detection = detector_lib.Detection(
    score=0.25,
    limits=limits,
    raw_map=RAW,
    image_size=size,
    smooth_sigma=1.0,
    zero_shot_score=zero_shot_score,
  )
  return predictions.ImageResult(str(path), name, detection)


@pytest.mark.parametrize(
  ("names", "message"),
  [
    (["scores", "mask"], "'mask' is unknown; expected some of scores,overlays"),
    (["maps", "scores", "maps"], "'maps' is repeated"),
    ([], "names nothing"),
    (["masks"], "need a pixel threshold.*zsad calibrate"),
    (["scores", "regions"], "need a pixel threshold"),
  ],
)
def test_outputs_that_are_refused(names, message):
  with pytest.raises(ValueError, match=f"--save.*{message}"):
    result_files.choose(names, WITHOUT)


def test_outputs_that_are_chosen():
  assert result_files.choose(None, LIMITS) == {*result_files.OUTPUTS}
  assert result_files.choose(None, WITHOUT) == {"scores", "overlays", "maps"}
  assert result_files.choose(["masks"], LIMITS) == {"scores", "masks"}


SUBSETS = [
  subset
  for n in range(5)
  for subset in itertools.combinations(result_files.OUTPUTS[1:], n)
]


@pytest.mark.parametrize("save", SUBSETS, ids=",".join)
def test_there_is_a_column_for_every_file_and_a_file_for_every_column(
  tmp_path, save
):
  one = result(tmp_path / "a.png", zero_shot_score=0.75)
  save = result_files.choose([*save, "scores"], LIMITS)
  writer = result_files.ResultWriter(
    tmp_path / "out", save, LIMITS, has_references=True
  )
  row = writer.write(one)
  assert [*row.values] == writer.columns
  paths = [row.values.get(kind) for kind in ("overlay", "map", "mask")]
  paths = {str(path) for path in paths if path}
  assert paths == {str(p) for p in (tmp_path / "out").glob("*")}
  assert len(paths) == len(save - {"scores", "regions"})
  assert ("regions" in row.values) == ("regions" in save) == bool(row.regions)
  assert row.values["zero_shot_score"] == 0.75
  assert row.values["normal_percentile"] == 75.0
  unread = writer.unscored(str(tmp_path / "b.png"), "not read: why")
  assert unread.values["status"] == "not read: why"
  assert sum(map(bool, unread.cells())) == 2 and len(unread.cells()) == len(
    writer.columns
  )


def test_masks_maps_and_regions_are_those_of_scipy(tmp_path):
  one = result(tmp_path / "a.png")
  writer = result_files.ResultWriter(
    tmp_path, {*result_files.OUTPUTS}, LIMITS, has_references=False
  )
  with region_files.RegionTables(tmp_path) as tables:
    row = writer.write(one)
    tables.add(str(tmp_path / "a.png"), (30, 40), row.found)
  np.testing.assert_array_equal(np.load(tmp_path / "x_map.npy"), RAW)
  smooth = ndimage.gaussian_filter(RAW, 1.0)
  whole = Image.fromarray(smooth).resize((40, 30), Image.Resampling.BILINEAR)
  expected = np.asarray(whole) >= np.float32(0.6)
  mask = np.asarray(Image.open(tmp_path / "x_mask.png"))
  assert mask.dtype == np.uint8 and 0 < expected.mean() < 1
  np.testing.assert_array_equal(mask, np.where(expected, 255, 0))
  _, count = ndimage.label(expected, np.ones((3, 3)))
  assert row.values["regions"] == count == len(row.regions) > 1
  check_tables(tmp_path, {str(tmp_path / "a.png"): expected})


def check_tables(folder, masks):
  """Check regions.csv and regions.json against masks by path."""
  with (folder / "regions.csv").open(encoding="utf-8-sig") as file:
    rows = list(csv.DictReader(file))
  coco = json.loads((folder / "regions.json").read_text())
  assert len(coco["annotations"]) == len(rows)
  assert coco["categories"] == [{"id": 1, "name": "anomaly"}]
  assert [a["id"] for a in coco["annotations"]] == [*range(1, len(rows) + 1)]
  paths = {image["id"]: image for image in coco["images"]}
  assert {image["file_name"] for image in coco["images"]} == {*masks}
  unions = {path: np.zeros_like(mask) for path, mask in masks.items()}
  for row, annotation in zip(rows, coco["annotations"], strict=True):
    image = paths[annotation["image_id"]]
    shape = (image["height"], image["width"])
    path = image["file_name"]
    assert row["image"] == path and os.path.isabs(path)
    assert shape == masks[path].shape == (*annotation["segmentation"]["size"],)
    found = regions_test.decode(annotation["segmentation"]["counts"], *shape)
    ys, xs = np.nonzero(found)
    box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
    assert annotation["bbox"] == box
    assert box == [int(row[k]) for k in ("left", "top", "width", "height")]
    assert annotation["area"] == found.sum() == int(row["area"])
    assert float(row["peak"]) == pytest.approx(annotation["score"], 1e-5)
    assert float(row["mean"]) == pytest.approx(annotation["mean_score"], 1e-5)
    assert not (unions[path] & found).any()
    unions[path] |= found
  for path, mask in masks.items():
    np.testing.assert_array_equal(unions[path], mask)
    numbers = [int(r["region"]) for r in rows if r["image"] == path]
    assert numbers == [*range(1, len(numbers) + 1)]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt(), OSError("full")])
def test_tables_of_regions_are_complete_at_any_end(tmp_path, error):
  writer = result_files.ResultWriter(
    tmp_path / "out", {"regions"}, LIMITS, has_references=False
  )
  masks = {}
  try:
    with region_files.RegionTables(tmp_path / "out") as tables:
      for i in range(3):
        path = tmp_path / f"ä,\n{i}.png"
        limits = threshold_lib.Threshold(
          0.5, 0.0, 1.0, "", pixel=[0.6, 2.0, 0.5][i]
        )
        one = result(path, limits)
        masks[str(path)] = one.detection.mask
        tables.add(str(path), (30, 40), writer.write(one).found)
        # What a kill leaves.
        partial = (tmp_path / "out" / "regions.partial.csv").read_text()
        assert (f"\n{i}.png" in partial) == masks[str(path)].any()
        assert not (tmp_path / "out" / "regions.json").exists()
      if error:
        raise error
  except (KeyboardInterrupt, OSError) as found:
    assert found is error
  check_tables(tmp_path / "out", masks)
  names = sorted(p.name for p in (tmp_path / "out").iterdir())
  assert names == ["regions.csv", "regions.json"]


unit = st.floats(0, 1, allow_subnormal=False)


@settings(max_examples=300)
@given(unit, unit, unit, st.lists(unit, max_size=8))
def test_normalized_scores_and_percentiles(limit, one, other, normal):
  assume(min(x for x in (limit, one, other, 1.0) if x) > 1e-200)
  scores = tuple(sorted(normal))
  threshold = threshold_lib.Threshold(limit, 0.0, 1.0, "", normal_scores=scores)
  found = threshold.normalized(one)
  assert 0 <= found <= 1
  assert (found >= 0.5) == (one >= limit)
  assert threshold.normalized(limit) == 0.5
  if one <= other:  # In the same order as the scores.
    assert found <= threshold.normalized(other)
  expected = 0.5 * one / limit if one < limit else None
  if one >= limit and limit < 1:
    expected = 1 - 0.5 * (1 - one) / (1 - limit)
  if expected is not None:
    assert math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-9)
  percentile = threshold.normal_percentile(one)
  if not normal:
    assert percentile is None
  else:
    share = 100 * sum(score < one for score in normal) / len(normal)
    assert percentile == pytest.approx(share)


def test_tables_of_an_earlier_call_are_removed(tmp_path):
  names = ("regions.csv", "regions.json", "references.json", "photo.png")
  for name in names:
    (tmp_path / name).touch()

  def left(save, has_references):
    result_files.remove_earlier(tmp_path, save, has_references=has_references)
    return {path.name for path in tmp_path.iterdir()}

  assert left({"scores"}, False) == {*names}  # No earlier call.
  (tmp_path / "scores.csv").touch()
  assert left({"scores", "regions"}, True) == {*names, "scores.csv"}
  assert left({"scores", "regions"}, False) == {
    *("regions.csv", "regions.json", "photo.png", "scores.csv")
  }
  assert left({"scores"}, True) == {"photo.png", "scores.csv"}

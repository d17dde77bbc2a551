"""Data sets as records: built, opened, the same as their files."""

import numpy as np
import pytest

from tests.datasets import entries_test
from zsad_jax.datasets import pipeline, preprocess, registry, tfds_builders


def build(name, write, tmp_path):
  write(tmp_path / "files")
  builder = tfds_builders.BUILDERS[name](
    data_dir=tmp_path / "shards", file_format="array_record"
  )
  config = tfds_builders.tfds.download.DownloadConfig(
    manual_dir=tmp_path / "files"
  )
  builder.download_and_prepare(download_config=config)
  return (
    registry.read_entry(name, tmp_path / "files"),
    registry.open_dataset(f"tfds:{name}", data_root=tmp_path / "shards"),
  )


@pytest.mark.parametrize(
  "name, write",
  [
    ("mvtec", entries_test.mvtec("carpet", "metal_nut")),
    ("visa", entries_test.visa),
    ("aitex", entries_test.aitex),
    ("headct", entries_test.head_ct),
  ],
  ids=lambda x: x if isinstance(x, str) else "",
)
def test_records_are_the_files(name, write, tmp_path):
  files, records = build(name, write, tmp_path)
  assert records.counts == files.counts
  assert records.class_names == files.class_names
  for phase in ("train", "test"):
    for a, b in zip(getattr(files, phase), getattr(records, phase)):
      assert (a.label, a.class_name, a.specie_name, a.has_mask) == (
        b.label,
        b.class_name,
        b.specie_name,
        b.has_mask,
      )
      for one, other in zip(preprocess.open_pair(a), preprocess.open_pair(b)):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
  assert any("published are" in note for note in records.notes)


def test_the_pipeline_reads_records(tmp_path):
  files, records = build("mvtec", entries_test.mvtec("carpet"), tmp_path)
  batches = [
    next(
      pipeline.eval_batches(
        d.test, class_names=d.class_names, image_size=16, batch_size=3
      )
    )
    for d in (files, records)
  ]
  for key in ("image", "mask", "label"):
    np.testing.assert_array_equal(batches[0][key], batches[1][key])


def test_what_was_not_built_is_said(tmp_path):
  with pytest.raises(FileNotFoundError, match="tfds build zsad_mvtec"):
    registry.open_dataset("tfds:mvtec", data_root=tmp_path)
  assert len(tfds_builders.BUILDERS) == 22

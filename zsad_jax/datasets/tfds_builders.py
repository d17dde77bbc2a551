r"""TensorFlow Datasets builders that write registered data sets as records.

tfds build zsad_mvtec --imports=zsad_jax.datasets.tfds_builders \
    --manual_dir=data/mvtec --file_format=array_record --data_dir=shards

The result is opened like any other data set, as `tfds:mvtec` below the data
root shards/. Files are stored unchanged, so that decoding is bit-identical;
parts of files are stored as PNG.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf
import tensorflow_datasets as tfds

from zsad_jax.datasets import index, preprocess, registry, tfds_records


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Base of all builders; `entry_name` is the registered name."""

  VERSION = tfds.core.Version("1.0.0")
  entry_name = ""

  def _info(self) -> tfds.core.DatasetInfo:
    entry = registry.ENTRIES[self.entry_name]
    file = tfds.features.Tensor(shape=(), dtype=tf.string)
    return tfds.core.DatasetInfo(
      builder=self,
      description=f"{entry.title}, as the papers use it.",
      features=tfds.features.FeaturesDict({"image": file, "mask": file}),
      homepage=entry.source.split()[0],
      citation=entry.citation,
      license=entry.licence,
      metadata=tfds.core.MetadataDict(),
      disable_shuffling=True,  # The order is part of the protocol.
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    dataset = registry.read_entry(self.entry_name, str(dl_manager.manual_dir))
    parts = {"train": dataset.train, "test": dataset.test}
    metadata = self.info.metadata
    assert metadata is not None  # Set by `_info`.
    metadata[tfds_records.INDEX] = {
      part: [_facts(s) for s in samples] for part, samples in parts.items()
    }
    return {
      part: self._generate_examples(samples)
      for part, samples in parts.items()
      if samples
    }

  def _generate_examples(self, samples) -> Iterator[tuple[int, dict]]:
    for number, sample in enumerate(samples):
      image, mask = _stored(sample.image_path), b""
      if sample.more_masks:
        mask = _png(preprocess.open_pair(sample)[1])
      elif sample.mask_path:
        mask = _stored(sample.mask_path)
      yield number, {"image": image, "mask": mask}


def _facts(sample: index.Sample) -> list:
  return [
    sample.class_name,
    sample.specie_name,
    sample.label,
    bool(sample.mask_path),
    sample.view,
    sample.group,
  ]


def _stored(path: str) -> bytes:
  """Return the bytes of a file, or of a part of it as PNG."""
  name, box = index.file_and_box(path)
  if box is None:
    return Path(name).read_bytes()
  return _png(preprocess.open_image(path))


def _png(image) -> bytes:
  data = io.BytesIO()
  image.save(data, "PNG")
  return data.getvalue()


# A class registers itself with TensorFlow Datasets when it is created.
BUILDERS = {
  name: type(
    f"Zsad{name.title().replace('_', '')}",
    (Builder,),
    {
      "name": tfds_records.PREFIX + name,
      "entry_name": name,
      "__doc__": entry.title,
      "__module__": __name__,
      "MANUAL_DOWNLOAD_INSTRUCTIONS": (
        f"{entry.source}. Give the folder of the data set as manual_dir."
      ),
    },
  )
  for name, entry in registry.ENTRIES.items()
  if entry.folders
}

"""What is known of a data set before it is opened."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from zsad_jax.datasets.readers import Reader

# Images: train normal, test normal, test anomalous; None: not published.
Counts = tuple[int | None, int, int]


@dataclasses.dataclass(frozen=True)
class Raw:
  """A layout as downloaded.

  Attributes:
    marks: patterns below the root, all of which this layout has.
    read: its reader.
    shows: the layout, for people.
  """

  marks: tuple[str, ...]
  read: Reader
  shows: str

  def fits(self, root: Path) -> bool:
    return all(next(root.glob(mark), None) is not None for mark in self.marks)


@dataclasses.dataclass(frozen=True)
class Entry:
  """What is known of a data set before it is opened.

  Attributes:
    title: as papers write it.
    folders: where it may lie below the data root, the usual name first.
    source: where to get it.
    licence: of the data.
    citation: the publication to cite.
    categories: as the data set spells them; () where they are not listed.
    counts: published number of images; None where it varies.
    other_counts: what else is in circulation, by name.
    category_counts: published numbers by category.
    raw: layouts as downloaded; MVTec AD's and `meta.json` are always read.
    has_masks: whether it comes with masks of anomalies.
    lossy_masks: masks are JPEG files, whose edges ring: `verify` measures it,
      `config.masks` chooses how they are read.
    mosaic_prob: AdaCLIP's rate of mosaics in training.
    aliases: other spellings of its only category in files in circulation;
      sentences call them what they call the category.
    prompt_names: what to call a category in a sentence, where its name with
      spaces for underscores would not do.
    used_by: papers and what for.
    find_package: returns its folder in an installed package, or None.
  """

  title: str
  folders: tuple[str, ...]
  source: str
  licence: str
  citation: str
  categories: tuple[str, ...] = ()
  counts: Counts | None = None
  other_counts: Mapping[str, Counts] = dataclasses.field(default_factory=dict)
  category_counts: Mapping[str, Counts] = dataclasses.field(
    default_factory=dict
  )
  raw: tuple[Raw, ...] = ()
  has_masks: bool = True
  lossy_masks: bool = False
  mosaic_prob: float = 0.0
  aliases: tuple[str, ...] = ()
  prompt_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
  used_by: str = "test: all three"
  find_package: Callable[[], Path | None] | None = None

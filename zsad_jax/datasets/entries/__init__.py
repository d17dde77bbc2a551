"""Registered data sets.

Every module of this folder defines `ENTRIES`, a mapping from a name to an
`Entry`; `registry.py` collects them. A new data set is one entry: in one of
these modules or in a new one. A layout that `registry.read_entry` does not read
needs a reader as well, which is a function in `readers.py`.

    ENTRIES = {
      "toy": Entry(
        title="Toy parts",
        folders=("toy",),
        source="https://example.org/toy",
        licence="CC0",
        citation="Doe, 2024",
      )
    }
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from zsad_jax.datasets.readers import Reader

# Images: train normal, test normal, test anomalous; None: not published.
Counts = tuple[int | None, int, int]


@dataclasses.dataclass(frozen=True)
class Raw:
  """Layout of a data set as it is downloaded.

  Attributes:
    marks: patterns below the root, all of which match in this layout.
    read: reader of the layout.
    shows: description of the layout, for messages and tables.
  """

  marks: tuple[str, ...]
  read: Reader
  shows: str

  def fits(self, root: Path) -> bool:
    """Return whether the folder `root` has this layout."""
    return all(next(root.glob(mark), None) is not None for mark in self.marks)


@dataclasses.dataclass(frozen=True)
class Entry:
  """Metadata of a data set.

  Attributes:
    title: name as papers write it.
    folders: names of its folder below the data root, the usual one first.
    source: where to get it.
    licence: licence of the data.
    citation: publication to cite.
    categories: names as the data set spells them; () where they are not listed.
    counts: published number of images; None where it varies.
    other_counts: counts of other preparations in circulation, by name.
    category_counts: published numbers by category.
    raw: layouts as downloaded. `meta.json`, MVTec AD's layout and the plain one
      are always read.
    has_masks: whether anomalous images have masks.
    lossy_masks: masks are JPEG files with compression artefacts at edges:
      `verify` measures them, `config.masks` selects how they are read.
    mosaic_prob: probability of mosaics in AdaCLIP's training.
    aliases: other spellings of its only category in files in circulation; text
      prompts name them as they name the category.
    prompt_names: name of a category in text prompts, where it differs from the
      name of the category with spaces for underscores.
    references_from_test: whether the published few-shot protocol draws the
      references from the test images, as there are no training images.
    used_by: papers that use it, and for which purpose.
    find_package: return its folder in an installed package, or None.
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
  references_from_test: bool = False
  used_by: str = ""
  find_package: Callable[[], Path | None] | None = None

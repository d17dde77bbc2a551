"""ELPV: electroluminescence images of solar cells, with the papers' split.

The 715 cells of defect probability 1 are anomalous. The 1508 cells of
probability 0 are normal and split 75 : 25 in file order by the algorithm of
scikit-learn's `train_test_split(test_size=0.25, random_state=42)`. The other
cells are not used. The images are available as a Python package, so this
protocol is reproduced exactly.
FAPrompt, Table 4, counts 377 normal and 715 anomalous test images.

Data: Buerhop-Lutz et al. (2018), github.com/zae-bayern/elpv-dataset.
"""

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path

from zsad_jax.datasets import index, readers
from zsad_jax.runtime import text_files
from zsad_jax.types import ANOMALOUS, NORMAL

LABELS = "labels.csv"
PACKAGE = "elpv_dataset"


def find_package() -> Path | None:
  """Return the data folder of the installed package, without importing it."""
  spec = importlib.util.find_spec(PACKAGE)
  if spec is None or not spec.submodule_search_locations:
    return None
  return Path(spec.submodule_search_locations[0]) / "data"


def read(root: Path) -> readers.Parts:
  """Read `labels.csv` and `images/` below `root`, in file order.

  Raises:
    ValueError: a row is not "path probability type", or an image is missing.
  """
  normal, anomalous = [], []
  for line, (path, probability, kind) in _rows(root / LABELS):
    image = root / path
    if not image.is_file():
      raise ValueError(f"{root / LABELS}: line {line}: {image} does not exist.")
    if math.isclose(probability, 0.0, abs_tol=1e-6):
      normal.append(index.Sample(str(image), "", "elpv", "good", NORMAL))
    elif math.isclose(probability, 1.0, abs_tol=1e-6):
      anomalous.append(index.Sample(str(image), "", "elpv", kind, ANOMALOUS))
  train, test = readers.held_out(normal)
  return train, test + anomalous


def _rows(labels: Path) -> Iterator[tuple[int, tuple[str, float, str]]]:
  """Yield each line's number and values; columns are padded with spaces."""
  for number, line in enumerate(text_files.read(labels).splitlines(), start=1):
    try:
      path, probability, kind = line.split()
      yield number, (path, float(probability), kind)
    except ValueError as error:
      raise ValueError(
        f'{labels}: line {number}: expected "path probability '
        f'type", found {line!r}.'
      ) from error

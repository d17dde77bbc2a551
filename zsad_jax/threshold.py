"""The threshold a run stores, and the range its maps are coloured in."""

import dataclasses
import json
import pathlib

from zsad_jax import files

FILE = "threshold.json"


@dataclasses.dataclass(frozen=True)
class Threshold:
  """What `predict` needs beside the parameters.

  Attributes:
    image_score: images with at least this score are called anomalous.
    map_low: anomaly-map value shown in the coldest colour.
    map_high: value shown in the warmest.
    source: how they were found, for people.
  """

  image_score: float
  map_low: float
  map_high: float
  source: str

  def write(self, workdir: pathlib.Path) -> None:
    """Writes it beside the parameters of the run."""
    text = json.dumps(dataclasses.asdict(self), indent=1) + "\n"
    files.write_text(workdir / FILE, text)


def read(workdir: pathlib.Path) -> Threshold:
  """Reads the threshold of a run.

  Raises:
    FileNotFoundError: the run has none, as its training was not finished.
  """
  path = workdir / FILE
  if not path.is_file():
    raise FileNotFoundError(
        f"{path} does not exist: training was not finished. Run the training "
        "command again; it goes on where it stopped."
    )
  return Threshold(**json.loads(path.read_text(encoding="utf-8")))

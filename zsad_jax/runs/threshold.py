"""The threshold a run stores, and the range its maps are coloured in."""

import dataclasses
import json
import pathlib

from zsad_jax.runtime import files

FILE = "threshold.json"
FEW_SHOT_FILE = "threshold_few_shot.json"


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

  def write(self, workdir: pathlib.Path, file: str = FILE) -> None:
    """Writes it beside the parameters of the run."""
    text = json.dumps(dataclasses.asdict(self), indent=1) + "\n"
    files.write_text(workdir / file, text)


def read(workdir: pathlib.Path, *, few_shot: bool = False) -> Threshold:
  """Reads the threshold of a run, that of scores with references if asked.

  Raises:
    FileNotFoundError: the run has none.
  """
  path = workdir / (FEW_SHOT_FILE if few_shot else FILE)
  if path.is_file():
    return Threshold(**json.loads(path.read_text(encoding="utf-8")))
  if few_shot and (workdir / FILE).is_file():
    raise FileNotFoundError(
      f"{path} does not exist: the auxiliary data had no normal images to "
      "serve as references. Give a --threshold."
    )
  raise FileNotFoundError(
    f"{path} does not exist: training was not finished. Run the training "
    "command again; it goes on where it stopped."
  )

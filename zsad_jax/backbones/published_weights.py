"""Published weights of backbones: description of an entry of a catalogue."""

import dataclasses

FOLDER = "weights"  # Of converted weights, as configurations name it.


@dataclasses.dataclass(frozen=True)
class LocalFile:
  """A file that can be fetched by hand, where there is no network.

  Attributes:
    url: where it is published.
    sha256: its SHA-256, "" where it is not known for certain.
    options: flags of `zsad convert` that it needs.
  """

  url: str
  sha256: str = ""
  options: str = ""

  @property
  def name(self) -> str:
    """Name of the file."""
    return self.url.rpartition("/")[2]


@dataclasses.dataclass(frozen=True)
class Published:
  """Weights that `zsad weights get NAME` fetches and converts.

  Attributes:
    name: of the weights, and of the converted file.
    backbone: value of `config.backbone.name`.
    repo: owner/name on the Hugging Face hub.
    trained_by: who trained it, and on which data.
    licence: licence of the weights, as their authors state it.
    files: files of weights in the repository in order of preference; () for
      those of transformers.
    options: keyword arguments of the conversion, which the files do not state.
    local: a file that can be fetched by hand instead; None for the files of the
      repository.
  """

  name: str
  backbone: str
  repo: str
  trained_by: str
  licence: str
  files: tuple[str, ...] = ()
  options: tuple[tuple[str, str], ...] = ()
  local: LocalFile | None = None

  @property
  def output(self) -> str:
    """Converted file, as configurations name it."""
    return f"{FOLDER}/{self.name}.safetensors"

"""Loading of SAM's image encoders that `config.backbone.name` can select."""

from zsad_jax.backbones import fetching
from zsad_jax.backbones.published_weights import LocalFile, Published
from zsad_jax.backbones.sam import model, sources, weights
from zsad_jax.backbones.sam.config import MODELS, SamConfig

RANDOM = "sam-random"  # A small one with random weights.
RANDOM_CONFIG = SamConfig(
  width=64,
  layers=4,
  heads=2,
  global_layers=(2, 4),
  image_size=64,
  patch_size=8,
  window=3,
  neck_width=32,
)
RANDOM_SEED = 0

NAMES = (RANDOM, *MODELS)
CONVERTIBLE = tuple(MODELS)  # Values of `zsad convert --model`.
NOTES = {
  RANDOM: (
    "The backbone is a small image encoder of SAM's kind with random weights: "
    "the numbers show the contribution of the method alone."
  ),
}
_FILES = {
  "sam-vit-base": "sam_vit_b_01ec64.pth",
  "sam-vit-large": "sam_vit_l_0b3195.pth",
  "sam-vit-huge": "sam_vit_h_4b8939.pth",
}
PUBLISHED = tuple(
  Published(
    name,
    name,
    f"facebook/{name}",
    "Meta, on SA-1B",
    "Apache-2.0 (model card)",
    local=LocalFile(f"https://dl.fbaipublicfiles.com/segment_anything/{file}"),
  )
  for name, file in _FILES.items()
)


def load(name: str, path: str, dtype: str = "float32") -> model.Sam:
  """Load SAM's frozen image encoder.

  Args:
    name: one of `NAMES`.
    path: file written by `zsad convert`; "" for `RANDOM`.
    dtype: data type of matrix products, one of `backbones.DTYPES`.

  Returns:
    The model.

  Raises:
    FileNotFoundError: the file does not exist.
    ValueError: no path is given, or the file holds another model.
  """
  if name == RANDOM:
    sam = model.random_sam(RANDOM_CONFIG, RANDOM_SEED)
    return sam.with_dtype(dtype)
  fetching.require_file(name, path, PUBLISHED)
  params, config = weights.load(path)
  if config != MODELS[name]:
    raise ValueError(
      f"{path} holds {config}, but config.backbone.name is {name}, which is "
      f"{MODELS[name]}."
    )
  return model.from_params(params, config).with_dtype(dtype)


def fetch(entry: Published, output: str, *, offline: bool) -> str:
  """Fetch published weights, convert them and return a summary.

  Args:
    entry: of `PUBLISHED`.
    output: safetensors file to write.
    offline: use no network, only what was downloaded before.

  Raises:
    OSError: the weights cannot be fetched, or the file cannot be written.
    ValueError: a download is corrupt, or of another model.
  """
  return fetching.fetch(entry, output, sources.convert, offline=offline)


def convert(source: str, output: str, *, model: str) -> str:
  """Convert weights; see `sources.convert`."""
  return sources.convert(source, output, model=model)


def identify(name: str, path: str) -> Published | None:
  """Return the published weights that a converted file was made from.

  Args:
    name: one of `NAMES`.
    path: file of converted weights.
  """
  return fetching.identify(name, path, PUBLISHED)

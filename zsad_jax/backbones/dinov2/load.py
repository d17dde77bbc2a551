"""Loading of the DINOv2 models that `config.backbone.name` can select."""

from zsad_jax.backbones import fetching
from zsad_jax.backbones.dinov2 import conversion, model
from zsad_jax.backbones.dinov2.config import MODELS, DinoConfig
from zsad_jax.backbones.published_weights import LocalFile, Published

RANDOM = "dinov2-random"  # A small DINOv2 with random weights.
RANDOM_CONFIG = DinoConfig(
  width=128, layers=8, image_size=112, patch_size=8, registers=4
)
RANDOM_SEED = 0

NAMES = (RANDOM, *MODELS)
CONVERTIBLE = tuple(MODELS)  # Values of `zsad convert --model`.
NOTES = {
  RANDOM: (
    "The backbone is a small DINOv2 with random weights, made by the package: "
    "the numbers show the contribution of the method alone. For real "
    "inspection fetch a pretrained one: zsad weights get dinov2-small."
  ),
}

_META = "https://dl.fbaipublicfiles.com/dinov2"
_LETTERS = {"small": "s", "base": "b", "large": "l", "giant": "g"}


def _published(name: str) -> Published:
  """Return the entry of a model of facebook on the hub."""
  vit = f"dinov2_vit{_LETTERS[name.rpartition('-')[2]]}14"
  file = f"{vit}_reg4" if "registers" in name else vit
  return Published(
    name,
    name,
    f"facebook/{name}",
    "Meta, on LVD-142M",
    "Apache-2.0 (model card)",
    local=LocalFile(f"{_META}/{vit}/{file}_pretrain.pth"),
  )


PUBLISHED = tuple(_published(name) for name in MODELS)


def load(name: str, path: str, dtype: str = "float32") -> model.Dinov2:
  """Load a frozen DINOv2.

  Args:
    name: one of `NAMES`.
    path: file written by `zsad convert`; not read for the random
      weights.
    dtype: data type of matrix products, one of `backbones.DTYPES`.

  Returns:
    The model.

  Raises:
    FileNotFoundError: the file does not exist.
    ValueError: no path is given, or the file holds another model.
  """
  return _load(name, path).with_dtype(dtype)


def _load(name: str, path: str) -> model.Dinov2:
  if name == RANDOM:
    return model.random_dinov2(RANDOM_CONFIG, RANDOM_SEED)
  fetching.require_file(name, path, PUBLISHED)
  params, config = conversion.load(path)
  conversion.check_model(config, name, path)
  return model.from_params(params, config)


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
  return fetching.fetch(entry, output, conversion.convert, offline=offline)


def convert(source: str, output: str, *, model: str) -> str:
  """Convert weights; see `conversion.convert`."""
  return conversion.convert(source, output, model=model)


def identify(name: str, path: str) -> Published | None:
  """Return the published weights that a converted file was made from.

  Args:
    name: one of `MODELS`.
    path: file of converted weights.
  """
  return fetching.identify(name, path, PUBLISHED)

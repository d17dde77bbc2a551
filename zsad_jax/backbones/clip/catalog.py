"""Catalogue of published CLIP weights that the conversion reads.

Repositories, files and normalizations are those of open_clip's table of
pretrained models (`open_clip/pretrained.py`). The towers do not have the sizes
of ViT-g-14 and ViT-bigG-14, whose MLPs are not four times as wide, of ResNets
and ConvNeXts, and of text towers that are not CLIP's.
"""

from zsad_jax.backbones.clip import sources
from zsad_jax.backbones.published_weights import LocalFile, Published

_OPENAI = "OpenAI, on its own data set of 400 million pairs"
_OPENAI_LICENCE = "MIT (github.com/openai/CLIP)"
_LAION = "LAION, on LAION-2B (English)"
_LAION_LICENCE = "MIT (model card)"
_OPEN_CLIP = "https://github.com/mlfoundations/open_clip/releases/download"


def _openai_file(name: str) -> LocalFile:
  """Return the file that OpenAI publishes under a URL with its SHA-256."""
  digest = sources.OPENAI_SHA256[name]
  base = "https://openaipublic.azureedge.net/clip/models"
  return LocalFile(f"{base}/{digest}/{name}", digest)


PUBLISHED = (
  Published(
    "ViT-L-14-336",
    "ViT-L-14-336",
    "openai/clip-vit-large-patch14-336",
    _OPENAI,
    _OPENAI_LICENCE,
    local=_openai_file("ViT-L-14-336px.pt"),
  ),
  Published(
    "ViT-L-14",
    "ViT-L-14",
    "openai/clip-vit-large-patch14",
    _OPENAI,
    _OPENAI_LICENCE,
    local=_openai_file("ViT-L-14.pt"),
  ),
  Published(
    "ViT-B-16",
    "ViT-B-16",
    "openai/clip-vit-base-patch16",
    _OPENAI,
    _OPENAI_LICENCE,
    local=_openai_file("ViT-B-16.pt"),
  ),
  Published(
    "ViT-B-32",
    "ViT-B-32",
    "openai/clip-vit-base-patch32",
    _OPENAI,
    _OPENAI_LICENCE,
    local=_openai_file("ViT-B-32.pt"),
  ),
  Published(
    "ViT-B-16-plus-240",
    "ViT-B-16-plus-240",
    "timm/vit_base_patch16_plus_clip_240.laion400m_e31",
    "open_clip's authors, on LAION-400M (epoch 31)",
    "MIT (github.com/mlfoundations/open_clip)",
    files=("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    options=(("activation", "gelu_erf"), ("pixels", "openai")),
    local=LocalFile(
      f"{_OPEN_CLIP}/v0.2-weights/vit_b_16_plus_240-laion400m_e31-8fb26589.pt",
      options="--activation=gelu_erf",
    ),
  ),
  Published(
    "ViT-B-32-laion2b",
    "ViT-B-32",
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
    _LAION,
    _LAION_LICENCE,
    options=(("pixels", "openai"),),
  ),
  Published(
    "ViT-B-16-laion2b",
    "ViT-B-16",
    "laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
    _LAION,
    _LAION_LICENCE,
    options=(("pixels", "openai"),),
  ),
  Published(
    "ViT-L-14-laion2b",
    "ViT-L-14",
    "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
    _LAION,
    _LAION_LICENCE,
    options=(("pixels", "half"),),
  ),
  Published(
    "ViT-L-14-datacomp",
    "ViT-L-14",
    "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K",
    "LAION, on DataComp-1B",
    _LAION_LICENCE,
    options=(("pixels", "openai"),),
  ),
  Published(
    "ViT-H-14",
    "ViT-H-14",
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    _LAION,
    _LAION_LICENCE,
    options=(("pixels", "openai"),),
  ),
)

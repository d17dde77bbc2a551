r"""WinCLIP and WinCLIP+ (Jeong et al., CVPR 2023); nothing is trained.

python -m zsad_jax.train --config=configs/winclip.py

  configs/winclip.py                  the embedded benchmark with the embedded
                                      small CLIP
  configs/winclip.py:random           the same with the CLIP's random weights
  configs/winclip.py:paper            ViT-B/16+, 240 px, on VisA
  configs/winclip.py:paper_mvtec      on MVTec AD
  configs/winclip.py:paper,caoyunkang an implementation on top (or alone,
                                      embedded), see methods/winclip.py:
                                      anomalyclip, caoyunkang, mala_lab; then
                                      own_gallery (all windows of caoyunkang
                                      are compared with their own scale), unit
                                      (mean of unit embeddings), w2 and w3 (a
                                      single scale)

Few-shot (WinCLIP+): evaluate with --shots=1,2,4. The weights of the papers are
LAION-400M's; the implementations took epoch 31 or 32.

Measured numbers and run times: docs/results.md.
"""

from typing import Any

from zsad_jax.methods import winclip
from zsad_jax.runtime import config_files
from zsad_jax.types import Config

common = config_files.sibling(__file__, "common")

ABLATIONS: dict[str, dict[str, Any]] = {
  **winclip.VARIANTS,
  "own_gallery": dict(gallery_shift=False),
  "unit": dict(text_average="unit"),
  "w2": dict(scales=(2,)),
  "w3": dict(scales=(3,)),
}


def get_config(variant: str = "embedded") -> Config:
  """Return the configuration of a variant, see above."""
  return common.choose(variant, _build, ABLATIONS)


def _build(base: str) -> Config:
  config = common.like_anomalyclip(common.get_config("winclip"))
  config.epochs = 0
  config.smooth_sigma = 0.0
  if base == common.EMBEDDED:  # The size of pretraining, as 240 px.
    return config
  config.backbone.update(
    name="ViT-B-16-plus-240", path="weights/ViT-B-16-plus-240.safetensors"
  )
  config.image_size = 240
  config.prompt_names = "verbatim"
  config = common.on_mvtec_and_visa(config, base)
  return config

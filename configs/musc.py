r"""MuSc (Li et al., ICLR 2024); transductive, nothing is trained.

python -m zsad_jax.train --config=configs/musc.py

  configs/musc.py                  the embedded benchmark with the embedded
                                   small CLIP
  configs/musc.py:random           the same with the CLIP's random weights
  configs/musc.py:paper            ViT-L/14@336, 518 px, on VisA
  configs/musc.py:paper_mvtec      on MVTec AD
  configs/musc.py:paper_mvtec,max  an ablation on top (or alone, embedded): max
                                   (image scores are the largest values of the
                                   maps), r1 (no neighborhoods), visa (the
                                   numbers of similar images for VisA, which
                                   `paper` has)

All test images of a category are scored together: report the results apart
from those of methods that score each image alone. There is no text, and the
backbone can be an image encoder without one.

Measured numbers and run times: docs/results.md.
"""

from typing import Any

from zsad_jax.methods import musc
from zsad_jax.runtime import config_files
from zsad_jax.types import Config

common = config_files.sibling(__file__, "common")

ABLATIONS: dict[str, dict[str, Any]] = {
  **musc.VARIANTS,
  "max": dict(transductive_score=False),
  "r1": dict(neighborhoods=(1,)),
}


def get_config(variant: str = "embedded") -> Config:
  """Return the configuration of a variant, see above."""
  return common.choose(variant, _build, ABLATIONS)


def _build(base: str) -> Config:
  config = common.like_anomalyclip(common.get_config("musc"))
  config.epochs = 0
  if base == common.EMBEDDED:
    config.method.feature_layers = (2, 4, 6, 8)
    config.method.activation = "quick"  # As the embedded CLIP was trained.
    config.smooth_sigma = 0.0
    return config
  config = common.on_mvtec_and_visa(common.on_vit_l_14_336(config), base)
  if base == "paper":
    config.method.update(musc.VARIANTS["visa"])
  config.smooth_sigma = 0.0
  config.eval_batch_size = 4
  return config

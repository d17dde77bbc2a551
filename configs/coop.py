r"""CoOp (Zhou et al., IJCV 2022), adapted to anomaly detection.

python -m zsad_jax.train --config=configs/coop.py

  configs/coop.py             the embedded benchmark with the embedded
                              small CLIP: minutes on a laptop
  configs/coop.py:random      the same with the CLIP's random weights
  configs/coop.py:paper       ViT-L/14@336, 518 px, trained on the test
                              images of MVTec AD, for all other sets
  configs/coop.py:paper_mvtec trained on those of VisA, for MVTec AD
  configs/coop.py:paper,e8    an ablation on top (or alone, embedded):
                              e4 ... e16 context length, photo (it begins
                              with "a photo of a"), middle and front (of
                              the class), ac (image side and losses of
                              AnomalyCLIP)

Measured numbers and run times: docs/results.md.
"""

from typing import Any

from zsad_jax.runtime import config_files
from zsad_jax.types import Config

common = config_files.sibling(__file__, "common")

ABLATIONS: dict[str, dict[str, Any]] = {
  **{f"e{e}": dict(context_length=e) for e in (4, 8, 16)},
  "photo": dict(initial="a photo of a"),
  "middle": dict(class_position="middle"),
  "front": dict(class_position="front"),
  "ac": dict(vv_from=6, cls_ln_post=False, temperature=0.07, map_weight=4.0),
}


def get_config(variant: str = "embedded") -> Config:
  """Return the configuration of a variant, see above."""
  return common.choose(variant, _build, ABLATIONS)


def _build(base: str) -> Config:
  config = common.like_coop(common.get_config("coop"))
  if base == common.EMBEDDED:
    return config
  config = common.on_vit_l_14_336(config)
  return common.on_mvtec_and_visa(config, base)

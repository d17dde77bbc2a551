r"""CoCoOp (Zhou et al., CVPR 2022), adapted to anomaly detection.

python -m zsad_jax.train --config=configs/cocoop.py

  configs/cocoop.py             the embedded benchmark with the embedded
                                small CLIP: minutes on a laptop
  configs/cocoop.py:random      the same with the CLIP's random weights
  configs/cocoop.py:paper       ViT-L/14@336, 518 px, trained on the test
                                images of MVTec AD, for all other sets
  configs/cocoop.py:paper_mvtec trained on those of VisA, for MVTec AD
  configs/cocoop.py:paper,e8    an ablation on top (or alone, embedded):
                                e4 ... e16 context length, photo (it begins
                                with "a photo of a", the released
                                configuration), plain (the image side and
                                loss of CoOp)

Measured numbers and run times: docs/results.md.
"""

from typing import Any

from zsad_jax.runtime import config_files
from zsad_jax.types import Config

common = config_files.sibling(__file__, "common")

ABLATIONS: dict[str, dict[str, Any]] = {
  **{f"e{e}": dict(context_length=e) for e in (4, 8, 16)},
  "photo": dict(initial="a photo of a"),
  "plain": dict(
    vv_from=None, cls_ln_post=True, temperature=None, map_weight=0.0
  ),
}


def get_config(variant: str = "embedded") -> Config:
  """Return the configuration of a variant, see above."""
  return common.choose(variant, _build, ABLATIONS)


def _build(base: str) -> Config:
  config = common.like_coop(common.get_config("cocoop"))
  if base == common.EMBEDDED:
    config.method.vv_from = 5
    return config
  config = common.on_vit_l_14_336(config)
  return common.on_mvtec_and_visa(config, base)

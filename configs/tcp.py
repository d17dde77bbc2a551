r"""TCP (Yao et al., CVPR 2024), adapted to anomaly detection.

python -m zsad_jax.train --config=configs/tcp.py

  configs/tcp.py             the embedded benchmark with the embedded
                             small CLIP: minutes on a laptop
  configs/tcp.py:random      the same with the CLIP's random weights
  configs/tcp.py:paper       ViT-L/14@336, 518 px, trained on the test
                             images of MVTec AD, for all other sets
  configs/tcp.py:paper_mvtec trained on those of VisA, for MVTec AD
  configs/tcp.py:paper,v2    an ablation on top (or alone, embedded):
                             v2 (WinCLIP's written prompts), photo (the
                             context begins with "a photo of a"), no_fixed
                             (no loss of the written prompts), plain (the
                             image side and loss of CoOp)

Measured numbers and run times: docs/results.md.
"""

from typing import Any

from zsad_jax.runtime import config_files
from zsad_jax.types import Config

common = config_files.sibling(__file__, "common")

ABLATIONS: dict[str, dict[str, Any]] = {
  "v2": dict(fixed_prompts="winclip"),
  "photo": dict(initial="a photo of a"),
  "no_fixed": dict(fixed_weight=0.0),
  "plain": dict(
    vv_from=None, cls_ln_post=True, temperature=None, map_weight=0.0
  ),
}


def get_config(variant: str = "embedded") -> Config:
  """Return the configuration of a variant, see above."""
  return common.choose(variant, _build, ABLATIONS)


def _build(base: str) -> Config:
  config = common.like_coop(common.get_config("tcp"))
  config.optax_name = "adam"
  # The authors' instruction for Adam; gradients are smaller than this epsilon.
  config.optax = dict(learning_rate=0.002, b1=0.9, b2=0.999, eps=1e-3)
  if base == common.EMBEDDED:
    config.method.update(vv_from=5, class_token_block=2)
    return config
  config = common.on_vit_l_14_336(config)
  return common.on_mvtec_and_visa(config, base)

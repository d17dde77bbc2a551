r"""AnomalyCLIP (Zhou et al., ICLR 2024), with the values of the authors' code.

python -m zsad_jax.train --config=configs/anomalyclip.py

  configs/anomalyclip.py             the embedded benchmark with the embedded
                                     small CLIP: minutes on a laptop
  configs/anomalyclip.py:random      the same with the CLIP's random weights
  configs/anomalyclip.py:paper       ViT-L/14@336, 518 px, trained on the test
                                     images of MVTec AD, for all other sets
  configs/anomalyclip.py:paper_mvtec trained on those of VisA, for MVTec AD
  configs/anomalyclip.py:paper,e8    an ablation on top (or alone, embedded):
                                     e4 ... e16 context length, m1 ... m8
                                     length and d2 ... d12 depth of the deep
                                     tokens, multilayer (the feature layers of
                                     the first paper), no_vv (plain CLIP
                                     patches), cls_ln_post, insert, ensemble
                                     (Ensemble* of the FAPrompt paper: ten
                                     anomalous prompts), unitmean (their mean
                                     after normalization)

Few-shot (AnomalyCLIP+ of the AdaptCLIP paper): evaluate with --shots=1,2,4.

Measured numbers and run times: docs/results.md.
"""

from typing import Any

from zsad_jax.runtime import config_files
from zsad_jax.types import Config

common = config_files.sibling(__file__, "common")

ABLATIONS: dict[str, dict[str, Any]] = {
  **{f"e{e}": dict(context_length=e) for e in (4, 8, 12, 16)},
  **{f"m{m}": dict(deep_length=m) for m in (1, 2, 4, 8)},
  **{f"d{d}": dict(deep_depth=d) for d in (2, 5, 9, 12)},
  "multilayer": dict(feature_layers=(6, 12, 18, 24)),
  "no_vv": dict(vv_from=None),
  "cls_ln_post": dict(cls_ln_post=True),
  "insert": dict(deep_mode="insert"),
  "ensemble": dict(num_anomalous=10),
  "unitmean": dict(num_anomalous=10, anomalous_mean="unit"),
}
RELEASED = config_files.Released(
  page="https://github.com/zqhang/AnomalyCLIP",
  files=(
    ("checkpoints/9_12_4_multiscale_visa/epoch_15.pth", ""),
    (
      "checkpoints/9_12_4_multiscale/epoch_15.pth",
      "--config=anomalyclip:paper_mvtec",
    ),
  ),
  note="in the repository; trained on MVTec AD, and on VisA",
)


def get_config(variant: str = "embedded") -> Config:
  """Return the configuration of a variant, see above."""
  return common.choose(variant, _build, ABLATIONS)


def _build(base: str) -> Config:
  config = common.like_anomalyclip(common.get_config("anomalyclip"))
  if base == common.EMBEDDED:
    config.method.update(feature_layers=(8,), vv_from=5, deep_depth=4)
    config.epochs = 3
    return config
  config = common.on_vit_l_14_336(config)
  config = common.on_mvtec_and_visa(config, base)
  config.epochs = 15
  return config

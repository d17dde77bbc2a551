r"""FAPrompt (Zhu et al., ICCV 2025), with the values of the authors' code.

python -m zsad_jax.train --config=configs/faprompt.py

  configs/faprompt.py              the embedded benchmark with the embedded
                                   small CLIP: minutes on a laptop
  configs/faprompt.py:random       the same with the CLIP's random weights
  configs/faprompt.py:paper        ViT-L/14@336, 518 px, trained on the test
                                   images of MVTec AD, for all other sets
  configs/faprompt.py:paper_mvtec  trained on those of VisA, for MVTec AD
  configs/faprompt.py:paper,k5     an ablation on top (or alone, embedded):
                                   k1 ... k20 abnormal prompts, m1 ... m20
                                   patches of the prior, no_dap (Table 3: CAP
                                   alone), no_cap (DAP alone), no_oc, no_prior
                                   (their losses), d2 ... d12 depth
  configs/faprompt.py:paper,topk   the paper's choice of patches for the prior
  configs/faprompt.py:paper,text   every value as in the paper

Measured numbers and run times: docs/results.md.
"""

from typing import Any

from zsad_jax.runtime import config_files
from zsad_jax.types import Config

common = config_files.sibling(__file__, "common")

ABLATIONS: dict[str, dict[str, Any]] = {
  **{f"k{k}": dict(num_prompts=k) for k in (1, 5, 10, 15, 20)},
  **{f"m{m}": dict(num_patches=m) for m in (1, 5, 10, 15, 20)},
  **{f"d{d}": dict(deep_depth=d) for d in (2, 5, 9, 12)},
  "no_dap": dict(prior=False),
  "no_cap": dict(num_prompts=1),
  "no_oc": dict(oc_weight=0.0),
  "no_prior": dict(prior_weight=0.0),
  "topk": dict(prior_select="topk"),
  "text": dict(
    prior_select="topk",
    prior_reduce="sum",
    oc_weight=1.0,
    oc_ordered=True,
    map_weights=(1.0, 1.0),
    image_loss="paper",
    max_weights=(1.0, 1.0),
    damaged_word=False,
  ),
}
RELEASED = config_files.Released(
  page="https://github.com/mala-lab/FAPrompt",
  files=(
    ("trained on MVTec AD", ""),
    ("trained on VisA", "--config=faprompt:paper_mvtec"),
  ),
  note="on Google Drive, by the link of the README; see its issue 4",
)


def get_config(variant: str = "embedded") -> Config:
  """Return the configuration of a variant, see above."""
  return common.choose(variant, _build, ABLATIONS)


def _build(base: str) -> Config:
  config = common.like_anomalyclip(common.get_config("faprompt"))
  config.smooth_sigma = 10.0
  if base == common.EMBEDDED:
    config.method.update(feature_layer=8, vv_from=5, deep_depth=4)
    config.epochs = 3
    config.smooth_sigma = 4.0  # 112 pixels, not 518.
    return config
  config = common.on_vit_l_14_336(config)
  config = common.on_mvtec_and_visa(config, base)
  config.epochs = 7  # Without a schedule, the authors' epoch 7 of 15.
  return config

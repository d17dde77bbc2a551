r"""AdaCLIP (Cao et al., ECCV 2024), with the values of the authors' code.

python -m zsad_jax.train --config=configs/adaclip.py

  configs/adaclip.py             the synthetic benchmark and the small CLIP that
                                 are shipped with the package: minutes on a
                                 laptop, no downloads
  configs/adaclip.py:random      the same with the CLIP's random weights
  configs/adaclip.py:paper       the published protocol: ViT-L/14@336, 518 px,
                                 trained on MVTec AD + ColonDB for all other
                                 sets, five epochs of one image per step
  configs/adaclip.py:paper_mvtec  the same on VisA + ClinicDB, for MVTec AD and
                                 ColonDB
  configs/adaclip.py:paper,k40   an ablation on top (or alone, embedded): k10
                                 ... k80 clusters, hsf_none, hsf_paper; m1 ...
                                 m9 prompt length, j1 ... j9 depth; branches
                                 v, l; types s, d
  --config.optax.learning_rate=0.005   any field; a typo is an error

Differences of the paper's text from the code, besides config.method:
  auxiliary data   appendix: MVTec AD + ClinicDB, VisA + ColonDB
                   (--config.train_data='("mvtec","clinicdb")')
  selection        the authors keep the epoch that is best on VisA (MVTec AD),
                   a target set: selection="official" in the paper variants;
                   --config.selection=last keeps the last epoch
  mosaics          --config.mosaic_prob=0.0 --config.mosaic_label=any
  precision        authors: float16 autocast; this package: float32

Measured numbers and run times: docs/results.md.
"""

from typing import Any

from zsad_jax.runtime import config_files
from zsad_jax.types import Config

common = config_files.sibling(__file__, "common")

ABLATIONS: dict[str, dict[str, Any]] = {
  **{f"k{k}": dict(num_clusters=k) for k in (10, 20, 40, 80)},
  **{f"m{m}": dict(prompt_length=m) for m in (1, 3, 5, 7, 9)},
  **{f"j{j}": dict(prompt_depth=j) for j in (1, 2, 4, 6, 9)},
  **{b: dict(prompt_branches=b.upper()) for b in ("v", "l")},
  **{t: dict(prompt_types=t.upper()) for t in ("s", "d")},
  "hsf_none": dict(hsf="none"),
  "hsf_paper": dict(hsf="paper"),
}
RELEASED = config_files.Released(
  page="https://github.com/caoyunkang/AdaCLIP#weight-preparation",
  files=(
    (
      "MVTec AD & ClinicDB",
      '--config=adaclip:paper --config.train_data=\'("mvtec","clinicdb")\'',
    ),
    (
      "VisA & ColonDB",
      '--config=adaclip:paper_mvtec --config.train_data=\'("visa","colondb")\'',
    ),
  ),
  note="on Google Drive and Baidu; its issue 59 reports mislabelled files",
)


def get_config(variant: str = "embedded") -> Config:
  """Return the configuration of a variant, see above."""
  return common.choose(variant, _build, ABLATIONS)


def _build(base: str) -> Config:
  config = common.get_config("adaclip")
  config.optax_name = "adamw"
  config.optax = dict(
    learning_rate=0.01,
    b1=0.5,
    b2=0.999,
    eps=1e-8,
    weight_decay=0.01,  # torch's default, not optax's.
  )
  if base == common.EMBEDDED:
    config.method.feature_layers = (2, 4, 6, 8)
    config.method.activation = "quick"  # As the embedded CLIP was trained.
    config.method.remat = False
    config.optax.update(learning_rate=0.001)  # More stable on a small tower.
    config.memory.vv_from = None  # Shares the un-prompted pass.
    return config
  config = common.on_vit_l_14_336(config)
  config.memory.vv_from = None
  config.epochs = 5
  config.selection = "official"
  if base == "paper":
    config.train_data = ("mvtec", "colondb")
    config.selection_data = config.test_data = ("visa",)
  else:
    config.train_data = ("visa", "clinicdb")
    config.selection_data = config.test_data = ("mvtec",)
  return config

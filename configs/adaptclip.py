r"""AdaptCLIP (Gao et al., AAAI 2026), with the values of the authors' code.

python -m zsad_jax.train --config=configs/adaptclip.py

  configs/adaptclip.py              the embedded benchmark with the embedded
                                    small CLIP: minutes on a laptop
  configs/adaptclip.py:random       the same with the CLIP's random weights
  configs/adaptclip.py:paper        ViT-L/14@336, 518 px, trained on the test
                                    images of MVTec AD, for all other sets
  configs/adaptclip.py:paper_mvtec  trained on those of VisA, for MVTec AD
  configs/adaptclip.py:paper,va     an ablation of Table 5 on top (or alone,
                                    embedded): clip (no adapter), ta, va,
                                    joint, zero (ta and va), pqa_residual, pqa
  configs/adaptclip.py:paper,text   fusion as in the paper; max_pool, no_vv,
                                    own_heads: single differences
  configs/adaptclip.py:paper,b16    ViT-B/16-plus-240 at 512 px (Table 6)
  configs/adaptclip.py:paper,b16_alias  the same, reading the layer that the
                                    authors' code overwrites

Trained once at one shot; evaluate with --shots=1,2,4 for any number.

Measured numbers and run times: docs/results.md.
"""

from typing import Any

from zsad_jax.runtime import config_files
from zsad_jax.types import Config

common = config_files.sibling(__file__, "common")

_B16 = dict(feature_layers=(3, 6, 9, 12), vv_from=4)
ABLATIONS: dict[str, dict[str, Any]] = {
  "clip": dict(visual=False, textual=False, prompt_query=False),
  "ta": dict(visual=False, prompt_query=False),
  "va": dict(textual=False, prompt_query=False),
  "joint": dict(joint=True, prompt_query=False),
  "zero": dict(prompt_query=False),
  "pqa_residual": dict(visual=False, textual=False, context=False),
  "pqa": dict(visual=False, textual=False),
  "text": dict(fusion="paper", pool_topk=1),
  "max_pool": dict(pool_topk=1),
  "no_vv": dict(vv_from=None),
  "own_heads": dict(share_heads=False),
  "b16": _B16,
  "b16_alias": dict(alias_feature_layer=True, **_B16),
}
RELEASED = config_files.Released(
  page="https://huggingface.co/csgaobb/AdaptCLIP",
  files=(
    ("12_4_128_train_on_mvtec_3adapters_batch8/epoch_15.pth", ""),
    (
      "12_4_128_train_on_visa_3adapters_batch8/epoch_15.pth",
      "--config=adaptclip:paper_mvtec",
    ),
  ),
  note="GPL-2.0 by its model card",
)


def get_config(variant: str = "embedded") -> Config:
  """Return the configuration of a variant, see above."""
  config = common.choose(variant, _build, ABLATIONS)
  if "b16" in variant:
    if "paper" not in variant:
      raise ValueError(
        "The configuration adaptclip: b16 is a variant of paper."
      )
    config.backbone.update(
      name="ViT-B-16-plus-240", path="weights/ViT-B-16-plus-240.safetensors"
    )
    config.image_size = 512
    config.memory.update(**_B16)
  return config


def _build(base: str) -> Config:
  config = common.like_anomalyclip(common.get_config("adaptclip"))
  config.seed = 10
  if base == common.EMBEDDED:
    config.method.update(feature_layers=(5, 6, 7, 8), vv_from=5)
    config.epochs = 2
    return config
  config = common.on_vit_l_14_336(config)
  config = common.on_mvtec_and_visa(config, base)
  config.epochs = 15
  return config

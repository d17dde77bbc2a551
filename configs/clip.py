r"""Zero-shot CLIP with WinCLIP's prompts for both states; nothing is trained.

python -m zsad_jax.train --config=configs/clip.py

  configs/clip.py             the embedded benchmark with the embedded CLIP
  configs/clip.py:random      the same with the CLIP's random weights
  configs/clip.py:paper       ViT-L/14@336, 518 px, on VisA
  configs/clip.py:paper_mvtec on MVTec AD
  configs/clip.py:pair        two prompts instead of ensembles

Expected numbers and run times: see the results in README.md.
"""

from configs import common

ABLATIONS = {"pair": dict(prompts="pair")}


def get_config(variant="embedded"):
  """Returns the configuration of a variant, see above."""
  return common.choose("clip", variant, _build, ABLATIONS)


def _build(base):
  config = common.like_anomalyclip(common.get_config())
  config.epochs = 0
  config.method = dict(
    prompts="states",
    temperature=0.07,
    pos_resize="bicubic_antialias",
  )
  if base == common.EMBEDDED:
    config.image_size = 168  # 1.5 times that of pretraining, as the papers'.
    return config
  config = common.on_vit_l_14_336(config)
  config = common.on_mvtec_and_visa(config, base)
  config.method.temperature = 0.01
  return config

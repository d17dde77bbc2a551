"""Defaults that every configuration starts from. Plain functions and values."""

import os

from ml_collections import ConfigDict, config_dict

EMBEDDED = "embedded"  # The tiny backbone and the drawn data of the package.


def get_config() -> ConfigDict:
  """Returns what all methods share: the embedded benchmark, on one device.

  Fields:
    seed: of initialisation, order of the data and everything drawn.
    backbone: name in zsad_jax.clip.config.MODELS and its converted weights.
    data_root: folder of the registered data sets ($ZSAD_JAX_DATA or data/).
    train_data: auxiliary sets, whose test parts are trained on.
    test_data: sets to evaluate after training.
    prompt_names: class names in sentences, "verbatim" or "readable".
    mosaic_prob: share of samples replaced by a mosaic; None for each data
      set's own (AdaCLIP: 0.2 on MVTec AD, else 0).
    mosaic_label: "stale" (the label of the replaced sample, the authors'
      code) or "any" (anomalous when a part is).
    batch_size: images per step, over all devices.
    selection: "last", or "official" on the selection_data, which are targets.
    smooth_sigma: of the Gaussian over maps before metrics, in pixels.
    skip_corrupt: leave out and count images that cannot be read.
    matmul_precision: "highest", or what the device prefers ("default").
  """
  config = ConfigDict()
  config.seed = 111
  config.backbone = dict(name=EMBEDDED, path="")
  config.image_size = 112

  config.data_root = os.environ.get("ZSAD_JAX_DATA", "data")
  config.train_data = ("embedded_auxiliary",)
  config.test_data = ("embedded",)
  config.prompt_names = "readable"
  config.mosaic_prob = config_dict.placeholder(float)
  config.mosaic_label = "stale"
  config.skip_corrupt = False

  config.epochs = 1
  config.batch_size = 1
  config.selection = "last"
  config.selection_data = ()

  config.eval_batch_size = 8
  config.smooth_sigma = 4.0

  config.log_steps = 100
  config.checkpoint_steps = 500
  config.tensorboard = False
  config.matmul_precision = "highest"
  return config


def on_vit_l_14_336(config: ConfigDict) -> ConfigDict:
  """The backbone and image size of all three papers, at full precision."""
  config.backbone = dict(
      name="ViT-L-14-336", path="weights/ViT-L-14-336.safetensors"
  )
  config.image_size = 518
  config.eval_batch_size = 1
  config.prompt_names = "verbatim"
  return config

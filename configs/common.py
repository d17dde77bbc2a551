"""Defaults of all configurations, as plain functions and values."""

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from zsad_jax import methods
from zsad_jax.runtime import environment
from zsad_jax.types import Config

EMBEDDED = "embedded"  # The small CLIP and the synthetic data of the package.
RANDOM = "random"  # The same with random weights of the CLIP, for comparison.
# Published protocols: trained on MVTec AD for all other sets, on VisA for it.
BASES = (EMBEDDED, RANDOM, "paper", "paper_mvtec")


def optional(value: Any, kind: type) -> config_dict.FieldReference:
  """Return a field that also accepts None.

  Args:
    value: of the field, may be None.
    kind: type of the values, int, float or str.
  """
  return config_dict.FieldReference(value, field_type=kind | None)


def get_config(method: str) -> Config:
  """Return the embedded benchmark, on one device, with a method's defaults.

  Fields:
    method_name, method: the method, and all its hyperparameters with the
      values of its authors, see zsad_jax/methods/.
    seed: of initialization, order of the data and everything random.
    backbone: name of a model (`zsad_jax.backbones`), its converted weights, and
      the type of its matrix products: "float32", or "bfloat16" (faster on
      accelerators; norms, softmax, logits and losses stay in float32); its
      attention: "exact", or "flash", a kernel for TPUs that was compiled and
      compared in an interpreter, but has not run on a TPU.
    text_backbone: name and weights of a second model, for methods that compare
      an image encoder without text with the text of a CLIP; "" for none.
    image_size: side of the images in pixels.
    data_root: folder of the registered data sets ($ZSAD_JAX_DATA or data/).
    train_data: auxiliary sets; training uses their test images.
    test_data: sets to evaluate after training.
    allow_trained: evaluate on a set that was trained on, too.
    prompt_names: class names in prompts, "verbatim" or "readable".
    mosaic_prob: share of samples replaced by a mosaic; None for each data
      set's own (AdaCLIP: 0.2 on MVTec AD, else 0).
    mosaic_label: "stale" (the label of the replaced sample, the authors'
      code) or "any" (anomalous when a part is).
    mosaic_images: of mosaics, "all" of the class or "anomalous" ones alone, see
      zsad_jax/datasets/augmentation.py.
    augmentation: "none", or "vcpclip" to rotate training images and change
      their brightness, color and sharpness as VCP-CLIP's authors do.
    epochs: passes over the auxiliary images.
    batch_size: images per step, over all devices, of any number.
    batch_scale: whole number by which batch size and learning rates are
      multiplied, for more devices than a recipe was made for.
    l2_weight_decay: factor of the parameters that are added to their
      gradients, as the weight decay of torch's SGD and Adam is.
    schedule: learning rate of each epoch: name ("constant" or "cosine"), and
      the number and learning rate of the warm-up epochs before, see
      zsad_jax/training/optimizer.py.
    param_groups: by any name: "params", a regular expression of the whole
      paths of parameters, and their own settings of `optax` or
      l2_weight_decay, such as dict(biases=dict(params=".*/bias",
      learning_rate=0.01)).
    selection: "last", or "official" on the selection_data, which are targets.
    smooth_sigma: of the Gaussian over maps before metrics, in pixels.
    masks: "compat", "robust" for JPEG files of masks, "resize" for masks of
      another size than their image, or "robust,resize"; see docs/data.md.
    decoded_cache: folder for decoded, resized images, which are then read
      instead of the files; "" for none.
    features: frozen features for training: storage ("auto", "device", "host",
      "disk", or "none" to encode at each step), dtype and folder, see
      zsad_jax/training/feature_cache.py.
    skip_corrupt: leave out and count images that cannot be read.
    memory: layers that references are compared with, the first one of the
      value-value stream (None: plain CLIP), what the largest distance in the
      score is taken of, "patches" or "pixels" of the resized map, and the
      weight of the zero-shot prediction (0: references alone); for methods
      that define none. For all: the share of a memory bank that is kept
      (None: all) and the width of the random projection by which it is chosen
      (None: without), see zsad_jax/layers/coreset.py.
    eval_batch_size: images per step of evaluation, over all devices.
    log_steps, checkpoint_steps: steps between two lines, two checkpoints.
    tensorboard: write TensorBoard files, too.
    matmul_precision: of float32 products on accelerators: "highest",
      "high" or "default", see docs/speed.md; a CPU has one.

  Args:
    method: name of a file in zsad_jax/methods/.
  """
  config: Config = ConfigDict()
  config.method_name = method
  config.method = methods.defaults(method).lock()
  config.seed = 111
  config.backbone = dict(
    name=EMBEDDED, path="", dtype="float32", attention="exact"
  )
  config.text_backbone = dict(name="", path="")
  config.image_size = 112

  config.data_root = environment.data_root()
  config.train_data = ("embedded_auxiliary",)
  config.test_data = ("embedded",)
  config.allow_trained = False
  config.prompt_names = "readable"
  config.mosaic_prob = optional(None, float)
  config.mosaic_label = "stale"
  config.mosaic_images = "all"
  config.augmentation = "none"
  config.masks = "compat"
  config.decoded_cache = ""
  config.features = dict(storage="auto", dtype="float32", folder="")
  config.skip_corrupt = False

  config.epochs = 1
  config.batch_size = 1
  config.batch_scale = 1
  config.l2_weight_decay = 0.0
  config.schedule = dict(
    name="constant", warmup_epochs=0, warmup_learning_rate=0.0
  )
  config.param_groups = dict()
  config.selection = "last"
  config.selection_data = ()

  config.memory = dict(
    feature_layers=(5, 6, 7, 8),
    vv_from=optional(5, int),
    score="pixels",
    zero_shot_weight=0.5,
    coreset=optional(None, float),
    coreset_width=optional(None, int),
  )

  config.eval_batch_size = 8
  config.smooth_sigma = 4.0

  config.log_steps = 100
  config.checkpoint_steps = 500
  config.tensorboard = False
  config.matmul_precision = "highest"
  return config


def on_vit_l_14_336(config: Config) -> Config:
  """Set the backbone and image size of all papers, at full precision."""
  config.backbone.update(
    name="ViT-L-14-336", path="weights/ViT-L-14-336.safetensors"
  )
  config.image_size = 518
  config.eval_batch_size = 1
  config.prompt_names = "verbatim"
  config.memory.feature_layers, config.memory.vv_from = (6, 12, 18, 24), 6
  config.memory.score = "patches"
  return config


def like_anomalyclip(config: Config) -> Config:
  """Set the recipe that AnomalyCLIP, FAPrompt and AdaptCLIP share."""
  config.optax_name = "adam"
  config.optax = dict(learning_rate=0.001, b1=0.5, b2=0.999, eps=1e-8)
  config.batch_size = 8
  config.mosaic_prob = 0.0
  return config


def like_coop(config: Config) -> Config:
  """Set the recipe that CoOp, CoCoOp and TCP share.

  Weight decay and learning rates are those of Dassl, the authors' library. The
  number of epochs on the auxiliary images is not published: 15.
  """
  config.optax_name = "sgd"
  config.optax = dict(learning_rate=0.002, momentum=0.9)
  config.l2_weight_decay = 5e-4
  config.schedule.update(
    name="cosine", warmup_epochs=1, warmup_learning_rate=1e-5
  )
  config.batch_size, config.epochs = 8, 15
  config.mosaic_prob = 0.0
  return config


def on_mvtec_and_visa(config: Config, base: str) -> Config:
  """Set the auxiliary and target sets of these three methods."""
  sets = (("mvtec",), ("visa",))
  config.train_data, config.test_data = (
    sets if base == "paper" else reversed(sets)
  )
  return config


def choose(
  variant: str,
  build: Callable[[str], Config],
  ablations: Mapping[str, Mapping[str, Any]],
) -> Config:
  """Return the configuration of a variant such as "paper" or "paper,k5".

  Args:
    variant: names joined by commas: at most one of `BASES`, which is
      "embedded" if there is none, and any of the ablations.
    build: base -> the configuration.
    ablations: settings of `config.method` by name.

  Raises:
    ValueError: there is no such variant.
  """
  parts = variant.split(",")
  bases = [part for part in parts if part in BASES] or [EMBEDDED]
  config = build(EMBEDDED if bases[0] == RANDOM else bases[0])
  name = config.method_name
  known = (*BASES, *ablations)
  if unknown := [part for part in parts if part not in known]:
    raise ValueError(
      f"The configuration {name} has no variant {unknown[0]!r}; it has "
      f"{', '.join(known)}."
    )
  if len(bases) > 1:
    raise ValueError(
      f"The configuration {name}: {' and '.join(bases)} exclude one another."
    )
  if bases[0] == RANDOM:
    config.backbone.name = "embedded_random"
  config.name = "_".join([name] + [p for p in parts if p != EMBEDDED])
  for part in parts:
    config.method.update(ablations.get(part, {}))
  return config

"""Types shared by the whole package."""

from collections.abc import Mapping, Sequence
from typing import (
  Any,
  ClassVar,
  Literal,
  NoReturn,
  NotRequired,
  Protocol,
  TypedDict,
  runtime_checkable,
)

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

from zsad_jax.types import literals
from zsad_jax.types.literals import choices as choices

Params = Mapping[str, Any]  # Nested dict of arrays; "a/b/kernel" when flat.
Batch = Mapping[str, Any]  # See `datasets/pipeline.py` for the keys.
Features = Mapping[str, Any]  # Returned by a method's `encode`.
Config = Any  # An ml_collections.ConfigDict, see configs/common.py.

# Activations of CLIP's MLPs: OpenAI's x * sigmoid(1.702 x), and erf-GELU.
Activation = Literal["quick", "gelu_erf"]
# Resampling of position tables, see `layers/resample.py`.
PositionResize = Literal["bilinear", "bicubic", "bicubic_antialias"]

NORMAL, ANOMALOUS = 0, 1  # States, on the last axis, everywhere.


class Prediction(TypedDict):
  """Prediction for a batch of images."""

  anomaly_map: Float[Array, "b h w"]  # [0, 1], input resolution, unsmoothed.
  pred_score: Float[Array, " b"]  # [0, 1], higher = more anomalous.
  # Terms of the score that a `Transductive` method combines over a category.
  score_terms: NotRequired[Float[Array, "b n"]]


@runtime_checkable
class ImageBackbone(Protocol):
  """Frozen image encoder.

  A pytree: it is passed to `jit` as an argument, not closed over.
  """

  @property
  def embed_dim(self) -> int:
    """Width of the embedding, d."""
    ...

  @property
  def patch_size(self) -> int:
    """Side of a patch in pixels."""
    ...

  @property
  def vision_layers(self) -> int:
    """Number of blocks of the image encoder."""
    ...

  @property
  def vision_width(self) -> int:
    """Channels of the image encoder."""
    ...

  def normalize(
    self, pixels: UInt8[Array | np.ndarray, "*b h w 3"]
  ) -> Float[Array | np.ndarray, "*b h w 3"]:
    """Normalize pixels in [0, 255] with the encoder's mean and deviation."""
    ...

  def image(self, image: Any, **hooks: Any) -> Any:
    """Encode normalized images.

    Args:
      image: (b, h, w, 3), normalized.
      **hooks: keywords that methods use, see `backbones/clip/vision.py`:
        prompts, vv_from, last_patches, before_mlp, remat, activation,
        pos_resize. An encoder refuses those that it does not have.

    Returns:
      Embeddings (b, d) and a dict of activations: "class", and "blockNN" for
      each layer, counted from 1: (b, 1 + l, c), class token first.
    """
    ...

  def project(self, tokens: Any, *, ln_post: bool) -> Any:
    """Project tokens into the embedding space."""
    ...


@runtime_checkable
class TextBackbone(Protocol):
  """Frozen text encoder."""

  @property
  def text_width(self) -> int:
    """Channels of the text encoder."""
    ...

  @property
  def text_layers(self) -> int:
    """Number of blocks of the text encoder."""
    ...

  def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return token ids (k, t) and end positions (k,)."""
    ...

  def embed_tokens(self, ids: Any) -> Any:
    """Look up token embeddings: (..., t) to (..., t, c)."""
    ...

  def text(self, embeds: Any, end: Any, **hooks: Any) -> Any:
    """Encode token embeddings; return embeddings and named activations."""
    ...

  def project_text(self, tokens: Any) -> Any:
    """Normalize and project tokens of the last block, as `text` does."""
    ...


@runtime_checkable
class Backbone(ImageBackbone, TextBackbone, Protocol):
  """Frozen vision-language model with a shared embedding space."""

  def logit_scale(self) -> Any:
    """Return the factor of the cosines that the model was trained with."""
    ...


@runtime_checkable
class DetectionModel(Protocol):
  """A model that predicts: pure functions of a frozen dataclass."""

  def prepare(self, backbone: Any, class_names: Sequence[str]) -> Any:
    """Return everything that depends on the class names only.

    Runs outside `jit`, once per data set.
    """
    ...

  def encode(self, backbone: Any, batch: Batch) -> Features:
    """Return frozen features of a batch; they depend on no parameter.

    "pixels" among the features are the normalized images themselves.
    """
    ...

  def predict(
    self, params: Any, stats: Any, backbone: Any, aux: Any, features: Features
  ) -> Prediction:
    """Predict maps and scores; an image's result depends on it alone."""
    ...


@runtime_checkable
class FewShotDetector(DetectionModel, Protocol):
  """A model that compares images with normal references of the same class.

  `predict` does so where features["memory_bank"] is given.
  """

  def build_memory_bank(self, features: Features) -> Any:
    """Build the memory bank of reference images.

    Args:
      features: of references, every leaf (n, shots, ...); n is the batch, or
        1 for a memory that all images share.

    Returns:
      The memory bank, every leaf (n, ...).
    """
    ...


@runtime_checkable
class AugmentsReferences(FewShotDetector, Protocol):
  """A few-shot detector whose memory bank is built from altered copies."""

  def augment_references(
    self, images: UInt8[np.ndarray, "k s s 3"]
  ) -> UInt8[np.ndarray, "n s s 3"]:
    """Return the images that the memory bank is built from."""
    ...


@runtime_checkable
class FusesZeroShot(FewShotDetector, Protocol):
  """A few-shot detector that extends its own zero-shot prediction."""

  def fuse_with_references(
    self, zero_shot: Prediction, features: Features
  ) -> Prediction:
    """Combine a zero-shot prediction with the comparison to references."""
    ...


@runtime_checkable
class ScoresSets(DetectionModel, Protocol):
  """A model that scores all images of a set together, such as a category.

  `predict` needs features["comparisons"], the results of `compare` with all
  images of the set, joined along the last axis, and features["set_index"],
  int32 (b,), the number of each image in the set. Every leaf of its features
  has one row for each image.
  """

  @property
  def min_set_size(self) -> int:
    """Least number of images of a set."""
    ...

  def compare(self, features: Features, others: Features) -> jax.Array:
    """Compare b images with m others.

    Args:
      features: returned by `encode`, of the images.
      others: of the others.

    Returns:
      Values (b, ..., m); each depends on one image and one other image alone.
    """
    ...


@runtime_checkable
class Transductive(Protocol):
  """A method whose image scores may depend on all images of a category.

  Its predictions with references, or for a `ScoresSets` all, have
  `score_terms`, and their `pred_score` is that without the others' terms. Only
  an evaluation has all images of a category; of a `ScoresSets`, every
  prediction has all images of its set.
  """

  @property
  def transductive_score(self) -> bool:
    """Whether an evaluation combines the terms over a category."""
    ...

  def category_scores(
    self, terms: Float[np.ndarray, "b n"]
  ) -> Float[np.ndarray, " b"]:
    """Compute the scores of all images of a category from their terms."""
    ...


class Method(DetectionModel, Protocol):
  """A detector: one paper, one file in `methods/`, one class `Method`.

  An implementation is a frozen dataclass that derives from this class; its
  fields are the paper's hyperparameters (`config.method`). Parameters that
  are not trained are passed as separate arguments.

  Attributes:
    reducible_memory_bank: whether some vectors of the method's own memory bank
      are one, too: its leaves are (n, shots, ..., l, d), sets of shots * l.
  """

  reducible_memory_bank: ClassVar[bool] = False

  @property
  def uses_text_backbone(self) -> bool:
    """Whether its text can come from `config.text_backbone`."""
    return False

  @property
  def checkpoint_spec(self) -> Any:
    """Layout of the authors' checkpoint, a `torch_io.rules.CheckpointSpec`.

    None where there is none.
    """
    return None

  def __post_init__(self):
    literals.check_choices(type(self), vars(self))

  @property
  def num_references(self) -> int:
    """Number of reference images given with each training image."""
    return 0

  @property
  def compares_references(self) -> bool:
    """Whether the method is a `FewShotDetector`.

    Others are extended by `inference.few_shot.WithMemoryBank`.
    """
    return self.num_references > 0

  @property
  def needs_references(self) -> bool:
    """Whether the method requires reference images to predict."""
    return False

  @property
  def learns_category(self) -> bool:
    """Whether it learns parameters per category from normal references.

    Every leaf that `prepare` returns then has a leading axis of classes, and
    `predict` takes a memory bank from the statistics, too.
    """
    return False

  @property
  def image_only(self) -> bool:
    """Whether image scores are its only result, and maps are not reported."""
    return False

  @property
  def min_set_size(self) -> int:
    """Least number of images that are scored together; 1: each by itself.

    A method for which it is larger is a `ScoresSets`.
    """
    return 1

  @property
  def needs_text(self) -> bool:
    """Whether the method needs a `TextBackbone`."""
    return True

  @property
  def image_hooks(self) -> Mapping[str, Any]:
    """Keyword arguments of `backbone.image` that all its features share."""
    return {}

  def init(self, rng: jax.Array, backbone: Any) -> tuple[Params, Params]:
    """Return the initial trainable parameters and running statistics."""
    ...

  def trainable_mask(self, params: Params) -> Params:
    """Return a tree like `params`: False for leaves the loss never reads."""
    return jax.tree.map(lambda _: True, params)

  def loss(
    self,
    params: Any,
    stats: Any,
    backbone: Any,
    aux: Any,
    features: Features,
    batch: Batch,
    rng: jax.Array,
  ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
    """Return `(scalar, (parts, stats))`; parts are named scalars."""
    ...


class TrainingFree(Method, Protocol):
  """A method without parameters, for which `config.epochs` has to be 0."""

  def init(self, rng: jax.Array, backbone: Any) -> tuple[Params, Params]:
    """Return no parameters."""
    del rng, backbone
    return {}, {}

  def loss(
    self,
    params: Any,
    stats: Any,
    backbone: Any,
    aux: Any,
    features: Features,
    batch: Batch,
    rng: jax.Array | None,
  ) -> NoReturn:
    """Raise ValueError: there is nothing to train."""
    del params, stats, backbone, aux, features, batch, rng
    raise ValueError("This method learns nothing: set config.epochs to 0.")

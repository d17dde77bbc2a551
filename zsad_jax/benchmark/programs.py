"""All programs of a method with shapes for arguments: no weights are needed."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from zsad_jax import types
from zsad_jax.backbones.clip import convert
from zsad_jax.backbones.clip import model as clip
from zsad_jax.backbones.clip.config import ClipConfig
from zsad_jax.benchmark import roofline
from zsad_jax.inference import few_shot, predictor
from zsad_jax.layers import coreset as coreset_lib
from zsad_jax.runs import run as run_lib
from zsad_jax.training import (
  feature_cache,
  feature_store,
  optimizer,
  update_step,
)

CLASSES = (  # Of MVTec AD: the number and length of prompts depend on them.
  "bottle cable capsule carpet grid hazelnut leather metal_nut pill screw tile "
  "toothbrush transistor wood zipper"
).split()
STORED = 1725  # Images of MVTec AD's test set, those that are stored.

_struct = jax.ShapeDtypeStruct


class Program(NamedTuple):
  """A program for all devices.

  Attributes:
    lowered: the program, to be compiled.
    flops: of its matrix products, see `roofline.flops`.
    arguments: those that grow with the number of images, and others.
  """

  lowered: jax.stages.Lowered
  flops: int
  arguments: Any


class Programs:
  """Programs of one method for a number of images on a mesh.

  Args:
    config: a configuration of training.
    sizes: of the backbone, instead of `config.backbone.name`.
    mesh: devices, which need not exist.
    batch_size: images over all devices.
    shots: references of the few-shot prediction.
  """

  def __init__(
    self,
    config: types.Config,
    sizes: ClipConfig,
    mesh: jax.sharding.Mesh,
    *,
    batch_size: int,
    shots: int = 4,
  ) -> None:
    self._config, self._mesh, self._shots = config, mesh, shots
    self._method = run_lib.make_method(
      config.method_name, config.method.to_dict()
    )
    self._everywhere = NamedSharding(mesh, P())
    self._split = NamedSharding(mesh, P("data"))
    self._batch_size = batch_size
    self._backbone = _placed(
      _backbone(sizes, config.backbone), self._everywhere
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    model = jax.eval_shape(self._method.init, key, self._backbone)
    aux = jax.eval_shape(
      lambda backbone: self._method.prepare(backbone, CLASSES), self._backbone
    )
    self._key, self._model, self._aux = _placed(
      (key, model, aux), self._everywhere
    )

  def all(self) -> dict[str, Callable[[], Program]]:
    """Return a function for each program, which lowers it."""
    found = {
      "encode": self.encode,
      "predict": self.predict,
      "few_shot": self.few_shot,
    }
    if self._method.needs_references:
      del found["predict"]
    if jax.tree.leaves(self._model[0]):  # It is trained.
      found["cached_step"] = functools.partial(self.update, cached=True)
      found["step"] = functools.partial(self.update, cached=False)
      found["store_read"] = self.store_read
    return found

  def encode(self) -> Program:
    """Return the program of the feature pass before training."""
    return _lower(self._encoder(), self._backbone, self._images())

  def predict(self) -> Program:
    """Return the zero-shot prediction from features."""
    return self._prediction(self._method, (None,))

  def few_shot(self) -> Program:
    """Return the prediction with references in a memory bank."""
    method = few_shot.with_memory_bank(
      self._method, **self._config.memory.to_dict()
    )
    rows = self._features(method)
    shots = jax.tree.map(
      lambda x: _struct((self._shots, *x.shape[1:]), x.dtype), rows
    )
    coreset = coreset_lib.from_settings(**self._config.memory)
    build = functools.partial(
      predictor.shared_memory_bank, method, coreset=coreset
    )
    bank = jax.eval_shape(build, shots)
    return self._prediction(method, (_placed(bank, self._everywhere),))

  def update(self, *, cached: bool) -> Program:
    """Return the update step, from stored features or from images."""
    config, (params, stats) = self._config, self._model
    trainable = self._method.trainable_mask(params)
    tx = optimizer.from_config(config, trainable, steps_per_epoch=1)
    opt, step = jax.eval_shape(tx.init, params), _struct((), jnp.int32)
    state = {
      "model": {"params": params, "stats": stats},
      "training": {"opt": opt, "step": step},
    }
    state = _placed(state, self._everywhere)
    batch = self._labels()
    count = self._method.num_references
    if cached:
      batch["features"] = rows = self._stored()
      if count:
        batch["reference_features"] = _repeated(rows, count)
    else:
      batch |= self._images()
      if count:
        batch["references"] = _repeated(batch["image"], count)
    batch = _placed(batch, self._split)
    function = update_step.make(self._method, tx)
    return _lower(function, state, self._backbone, self._aux, batch, self._key)

  def store_read(self) -> Program:
    """Return the read of a batch of stored features on the devices."""
    row = jax.tree.map(lambda x: _struct(x.shape[1:], x.dtype), self._stored())
    b = self._batch_size
    store: Any = feature_store.Device(row, STORED, self._mesh, b)
    return Program(store.lower_read((b,)), 0, ())

  def _prediction(self, method, banks) -> Program:
    features = _placed(self._features(method), self._split)
    predict = predictor.prediction(
      method, self._mesh, smooth_sigma=self._config.smooth_sigma
    )
    return _lower(
      predict, *self._model, self._backbone, self._aux, features, banks
    )

  def _encoder(self):
    """Return the function of the feature pass."""
    dtype = jnp.dtype(self._config.features.dtype)
    return feature_cache.encoder(self._method, dtype)

  def _features(self, method):
    """Return the shapes of a batch of features."""
    encode = functools.partial(predictor.encode, method)
    return jax.eval_shape(encode, self._backbone, self._images())

  def _stored(self):
    """Return the shapes of a batch of stored features."""
    return jax.eval_shape(self._encoder(), self._backbone, self._images())

  def _images(self):
    b, side = self._batch_size, self._config.image_size
    shapes = {
      "image": _struct((b, side, side, 3), jnp.uint8),
      "class_id": _struct((b,), jnp.int32),
    }
    return _placed(shapes, self._split)

  def _labels(self):
    b, side = self._batch_size, self._config.image_size
    return {
      "mask": _struct((b, side, side), jnp.uint8),
      "has_mask": _struct((b,), bool),
      "label": _struct((b,), jnp.int32),
      "weight": _struct((b,), jnp.float32),
      "class_id": _struct((b,), jnp.int32),
    }


def _backbone(sizes, settings):
  """Return a backbone whose parameters are shapes."""
  shapes = {
    name: _struct(shape, jnp.float32)
    for name, shape in convert.param_shapes(sizes).items()
  }
  build = lambda params: clip.Clip(
    params, sizes, attention=settings.attention
  ).with_dtype(settings.dtype)
  return jax.eval_shape(build, convert.unflatten(shapes))


def _placed(tree, sharding):
  put = lambda x: _struct(x.shape, x.dtype, sharding=sharding)
  return jax.tree.map(put, tree)


def _repeated(tree, count):
  """Return shapes (b, count, ...) for shapes (b, ...)."""
  shape = lambda x: (x.shape[0], count, *x.shape[1:])
  return jax.tree.map(lambda x: _struct(shape(x), x.dtype), tree)


def _lower(function: Any, *arguments: Any) -> Program:
  """Lower a jitted function for the devices of its arguments."""
  lowered = function.trace(*arguments).lower()
  return Program(lowered, roofline.flops(function, *arguments), arguments)

"""Small reproduction for tests: two methods on a small backbone.

python -m tests.helpers.small_reproduce DATA --table=embedded --workdir=DIR
"""

import functools
import pathlib
import sys

import jax

from tests.helpers import small_run
from zsad_jax.backbones.clip import load as clip_load
from zsad_jax.evaluation import recipes
from zsad_jax.reproduce import __main__ as reproduce
from zsad_jax.runtime import cli, config_files

METHODS = ("clip", "anomalyclip")


@functools.cache
def packaged(data: str, spec: str):
  """Return a small configuration; data sets of the papers are kept."""
  if spec.partition(":")[0] not in METHODS:
    return None
  config = config_files.load(spec).unlock()
  sets = config.train_data, config.test_data
  name, epochs = config.name, min(config.epochs, 2)
  small_run._shrink(config, data)
  config.name, config.epochs, config.backbone.path = name, epochs, ""
  if ":paper" in spec:
    config.train_data, config.test_data = sets
    config.allow_trained = False
  if config.method_name == "anomalyclip":
    config.method.update(
      feature_layers=(2,), context_length=2, deep_length=2, deep_depth=2
    )
  else:
    config.method.prompts = "pair"
  return config.lock()


def install(patch, data: str) -> None:
  """Replace backbone and configurations.

  Args:
    patch: sets attributes, such as pytest's `MonkeyPatch`.
    data: folder of `small_run.write_mvtec`, for tables of own data.
  """
  patch.setattr(clip_load, "RANDOM_CONFIG", small_run.BACKBONE)
  # Other tests of the same process need their compiled programs.
  patch.setattr(jax, "clear_caches", lambda: None)
  patch.setattr(recipes, "packaged", functools.partial(packaged, data))
  fresh = functools.cache(recipes._recipes.__wrapped__)
  patch.setattr(recipes, "_recipes", fresh)


class _Setter:
  """Sets attributes for good."""

  setattr = staticmethod(setattr)


if __name__ == "__main__":
  install(_Setter, str(pathlib.Path(sys.argv.pop(1)).absolute()))
  cli.run(reproduce.main, reproduce.define_flags)

"""Small run for tests: backbone, data, configuration, command.

python -m tests.helpers.small_run \\
    --config=tests/helpers/small_run.py:DATA --workdir=DIR
"""

import contextlib
import json
import os
import pathlib
import sys

import numpy as np
from PIL import Image

from tests.helpers import device_orders, remote_folder
from zsad_jax import train
from zsad_jax.backbones.clip import load as clip_load
from zsad_jax.backbones.clip.config import ClipConfig
from zsad_jax.runtime import cli, config_files

BACKBONE = ClipConfig(
  embed_dim=32,
  image_size=32,
  patch_size=8,
  vision_width=64,
  vision_layers=2,
  text_width=64,
  text_layers=2,
)


def get_config(data):
  """Return a small AdaCLIP on a folder of `write_images`.

  "anomalyclip,FOLDER" returns `get_anomalyclip_config(FOLDER)`.
  """
  if data.startswith("anomalyclip,"):
    return get_anomalyclip_config(data.removeprefix("anomalyclip,"))
  config = _load("adaclip")
  config.method.feature_layers = (1, 2)
  config.method.prompt_length = 2
  config.method.prompt_depth = 2
  config.method.num_clusters = 2
  config.method.hsf_top_factor = 2
  return _shrink(config, data)


def get_anomalyclip_config(data):
  """Return a small AnomalyCLIP on a folder of `write_mvtec`."""
  config = _load("anomalyclip")
  config.method.update(
    feature_layers=(2,), context_length=2, deep_length=2, deep_depth=2
  )
  return _shrink(config, data)


def get_adaptclip_config(data):
  """Return a small AdaptCLIP on a folder of `write_mvtec`."""
  config = _load("adaptclip")
  config.method.update(
    feature_layers=(1, 2),
    context_length=2,
    head_widths=(8, 4),
    pool_topk=2,
    sigma=1.0,
  )
  return _shrink(config, data)


def _load(name):
  """Return a packaged configuration whose fields can be set."""
  return config_files.load(name).unlock()


def _shrink(config, data):
  """Set small sizes that all methods share."""
  config.backbone.name = clip_load.RANDOM
  config.image_size = 32
  config.memory.feature_layers = (1, 2)
  config.train_data = config.test_data = (data,)
  config.allow_trained = True
  config.epochs = 2
  config.batch_size = 2
  config.eval_batch_size = 4
  config.smooth_sigma = 1.0
  config.log_steps = 1
  config.checkpoint_steps = 1
  return config


def write_mvtec(folder: pathlib.Path, *, classes=("bolt", "nut")):
  """Write the same images in MVTec AD's layout, and normal training images."""
  for name in classes:
    write_images(folder / "draft")
    for old, new in (
      ("normal", "test/good"),
      ("anomalous", "test/bright"),
      ("masks", "ground_truth/bright"),
    ):
      (folder / name / new).parent.mkdir(parents=True, exist_ok=True)
      (folder / "draft" / old).rename(folder / name / new)
    (folder / "draft").rmdir()
    rng = np.random.default_rng(len(name))
    (folder / name / "train/good").mkdir(parents=True)
    for i in range(5):
      image = rng.integers(90, 110, (40, 40, 3)).astype(np.uint8)
      Image.fromarray(image).save(folder / name / f"train/good/{i}.png")


def write_images(folder: pathlib.Path, *, masks: bool = True, number: int = 4):
  """Write gray images; the anomalous ones have a bright square."""
  rng = np.random.default_rng(0)
  parts = ["normal", "anomalous"] + ["masks"] * masks
  for part in parts:
    (folder / part).mkdir(parents=True)
  for i in range(number):
    image = rng.integers(90, 110, (40, 40, 3)).astype(np.uint8)
    Image.fromarray(image).save(folder / "normal" / f"{i}.png")
    mask = np.zeros((40, 40), np.uint8)
    top, left = rng.integers(0, 28, 2)
    mask[top : top + 12, left : left + 12] = 255
    image[mask > 0] = (250, 240, 20)
    Image.fromarray(image).save(folder / "anomalous" / f"{i}.png")
    if masks:
      Image.fromarray(mask).save(folder / "masks" / f"{i}.png")


def losses(workdir: pathlib.Path) -> list[float]:
  """Return the losses that a run has logged."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line)["loss"] for line in lines]


class StopAfter(contextlib.AbstractContextManager):
  """Replaces `stopping.Deferred`: requests a stop after some steps."""

  def __init__(self, steps=10**9):
    self._left = steps

  def __exit__(self, *error):
    pass

  def reached(self):
    self._left -= 1
    return self._left < 0

  @property
  def requested(self):
    return self._left < 0

  def interruptible(self):
    return contextlib.nullcontext()


def command():
  """Run `python -m zsad_jax.train` with this backbone."""
  clip_load.RANDOM_CONFIG = BACKBONE
  if store := os.environ.get(remote_folder.STORE):
    remote_folder.register(store)
  cli.run(train.main, train.define_flags)


def commands(folder, lines):
  """Run several such commands, each in a fork of this process; print statuses.

  Args:
    folder: receives the output of the command of `lines[i]`, i.out and i.err.
    lines: arguments of each command.
  """
  for i, line in enumerate(lines):
    if child := os.fork():
      _, status = os.waitpid(child, 0)
      print(os.waitstatus_to_exitcode(status), flush=True)
      continue
    for stream, name in ((1, "out"), (2, "err")):
      os.dup2(os.open(f"{folder}/{i}.{name}", os.O_CREAT | os.O_WRONLY), stream)
    sys.argv = ["train", *line]
    command()


if __name__ == "__main__":
  device_orders.imitate()
  command()

"""Parity of DINOv2: tokens of all blocks, for several sizes of images.

A case is a model, whose weights are stored under the names of its published
files, "CASE/w/NAME"; the config.json of each is in the manifest.
"""

import json
import pathlib
import tempfile
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from zsad_jax.backbones.clip import sources as clip_sources
from zsad_jax.backbones.dinov2 import model as dinov2
from zsad_jax.backbones.dinov2 import sources
from zsad_jax.parity import golden as golden_lib


def quantities(
  golden: golden_lib.Golden, entry: golden_lib.Entry
) -> Iterator[tuple[str, jax.Array]]:
  """Yield (stored name, our value) for each expected array."""
  del golden  # The weights are in the same file.
  for case in entry.config:
    backbone = load(entry, case)
    encode = jax.jit(lambda backbone, image: backbone.image(image))
    for image, pixels in entry.under("image_u8/").items():
      x = backbone.normalize(jnp.asarray(np.moveaxis(pixels, 1, -1)))
      embed, out = encode(backbone, x)
      found = {n: x for n, x in out.items() if n.startswith("block")}
      last = found[f"block{backbone.vision_layers:02d}"]
      found["last"] = backbone.project(last, ln_post=True)
      found["pooled"] = embed
      for name, value in found.items():
        yield f"{case}/{image}/{name}", value


def load(entry: golden_lib.Entry, case: str) -> dinov2.Dinov2:
  """Return the model of a case, read from the files of its publication."""
  state = entry.under(f"{case}/w/")
  arrays = {name: np.asarray(x, order="C") for name, x in state.items()}
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    text = json.dumps(entry.config[case])
    (folder / "config.json").write_text(text, encoding="utf-8")
    safetensors.numpy.save_file(arrays, folder / clip_sources.SAFETENSORS)
    params, config, _ = sources.read(name)
  return dinov2.from_params(params, config)

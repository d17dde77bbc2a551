"""Parity of SAM's image encoder: blocks and neck at several image sizes."""

import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from zsad_jax.backbones.sam import convert, model
from zsad_jax.parity import golden as golden_lib


def quantities(
  golden: golden_lib.Golden, entry: golden_lib.Entry
) -> Iterator[tuple[str, Any]]:
  """Yield (stored name, our value); weights are those of the file itself."""
  del golden
  sam = model.from_params(*convert.from_state(entry.under("w/")))
  encode = jax.jit(lambda sam, image: sam.image(image)[1])
  for name in entry:
    if not (found := re.fullmatch(r"(.+)/image", name)):
      continue
    image = jnp.asarray(entry[name], jnp.float32)
    b, h, w, _ = image.shape
    grid = b, h // sam.patch_size, w // sam.patch_size, -1
    out = encode(sam, image)
    yield f"{found[1]}/neck", out["neck"].reshape(grid)
    for i in range(sam.vision_layers):
      layer = f"block{i + 1:02d}"
      yield f"{found[1]}/{layer}", out[layer][:, 1:].reshape(grid)

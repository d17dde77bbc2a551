"""CoCoOp: a context for each image.

Its numbers are judged by the reference tensors in parity_test.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import numpy_reference, prefix_text
from zsad_jax.backbones.clip import config
from zsad_jax.backbones.clip import model as clip
from zsad_jax.methods import cocoop


@pytest.mark.parametrize(
  "settings, count",
  [
    ({}, 83_760),
    ({"context_length": 4}, 77_616),  # The released configuration.
    ({"reduction": 8}, 9_216 + 768 * 96 + 96 + 96 * 768 + 768),
  ],
)
def test_parameter_count_at_full_size(settings, count):
  backbone = clip.Clip({}, config.MODELS["ViT-L-14-336"])
  method = cocoop.Method(**settings)
  params, stats = jax.eval_shape(
    lambda: method.init(jax.random.key(0), backbone)
  )
  assert sum(x.size for x in jax.tree.leaves(params)) == count
  assert not stats


def test_the_text_of_each_image_by_hand(small_clip):
  backbone = prefix_text.PrefixText(small_clip)
  method = cocoop.Method(context_length=2, reduction=4)
  params, _ = method.init(jax.random.key(0), backbone)
  rng = np.random.default_rng(0)
  units = numpy_reference.unit(rng.normal(size=(3, 32))).astype(np.float32)
  features = {
    "class_unit": jnp.asarray(units),
    "class_id": jnp.array([1, 0, 1]),
  }
  aux = method.prepare(backbone, ["metal_nut", "pcb-board"])
  ours = method.text(params, backbone, aux, features)
  first, second = (
    jax.tree.map(np.asarray, params["meta_net"][f"linear{i}"]) for i in (1, 2)
  )
  hidden = np.maximum(units @ first["kernel"] + first["bias"], 0)
  shift = hidden @ second["kernel"] + second["bias"]
  names = ([4044, 6491], [26235, 268, 1972])
  for i, c in enumerate((1, 0, 1)):
    vectors = np.asarray(params["context"]) + shift[i]
    for j, state in enumerate(([5967], [21612, 526, 879])):
      prompt = [49406, -1, -2, *state, *names[c], 269, 49407]
      expected = prefix_text.by_hand(small_clip, prompt, vectors)
      np.testing.assert_allclose(ours[i, j], expected, rtol=1e-4, atol=1e-4)

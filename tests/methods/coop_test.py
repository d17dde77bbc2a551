"""CoOp: its context, and the number of prompts that a step encodes.

Its numbers are judged by the reference tensors in parity_test.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import prefix_text
from zsad_jax.backbones.clip import config
from zsad_jax.backbones.clip import model as clip
from zsad_jax.layers import class_prompts
from zsad_jax.methods import coop

NAMES = ["metal_nut", "pcb", "hazelnut"]


@pytest.mark.parametrize(
  "settings, count",
  [
    ({}, 9_216),
    ({"context_length": 16}, 16 * 768),
    ({"class_contexts": 15}, 30 * 9_216),
  ],
)
def test_parameter_count_at_full_size(settings, count):
  backbone = clip.Clip({}, config.MODELS["ViT-L-14-336"])
  method = coop.Method(**settings)
  params, stats = jax.eval_shape(
    lambda: method.init(jax.random.key(0), backbone)
  )
  assert sum(x.size for x in jax.tree.leaves(params)) == count
  assert not stats


class Recorder(prefix_text.PrefixText):
  """Counts the tokens of the prompts that are encoded."""

  def text(self, embeds, end, **hooks):
    self.tokens = embeds.shape[0] * embeds.shape[1]
    return super().text(embeds, end, **hooks)


@pytest.mark.parametrize("class_contexts", [0, 3])
def test_all_prompts_together_or_those_of_each_image(
  small_clip, class_contexts
):
  backbone = Recorder(small_clip)
  method = coop.Method(context_length=3, class_contexts=class_contexts)
  params, _ = method.init(jax.random.key(0), backbone)
  aux = method.prepare(backbone, NAMES)
  num_each, num_joint = (
    class_prompts.num_tokens(aux[name]) for name in ("each", "joint")
  )
  assert num_each < num_joint < 3 * num_each
  class_id = jnp.array([2, 0, 0, 1])
  together = method.text(params, backbone, aux, class_id)
  assert backbone.tokens == num_joint
  alone = method.text(params, backbone, aux, class_id[3:])
  assert backbone.tokens == num_each
  np.testing.assert_allclose(together[3], alone[0], rtol=1e-4, atol=1e-5)


def test_contexts_of_classes_are_in_the_order_of_the_prompts(small_clip):
  backbone = prefix_text.PrefixText(small_clip)
  method = coop.Method(context_length=2, class_contexts=3)
  params, _ = method.init(jax.random.key(0), backbone)
  assert params["context"].shape == (6, 2, 64)
  aux = method.prepare(backbone, NAMES)
  run = lambda params: method.text(params, backbone, aux, jnp.arange(3))
  # A vector of the fourth prompt: the anomalous state of the second class.
  changed = {"context": params["context"].at[3, 1, 5].add(1.0)}
  difference = np.array(run(changed) - run(params))
  np.testing.assert_allclose(difference[1, 1, 5], 3.0, rtol=1e-4)
  difference[1, 1, 5] = 0
  np.testing.assert_allclose(difference, 0, atol=1e-5)


def test_contexts_of_classes_fit_no_others(small_clip):
  method = coop.Method(context_length=2, class_contexts=2)
  with pytest.raises(ValueError, match="class_contexts is 2.*for 3 others"):
    method.prepare(small_clip, NAMES)
  with pytest.raises(ValueError, match="initial is of one context"):
    coop.Method(class_contexts=2, initial="a photo of a")


def test_words_give_the_length_of_the_context(small_clip):
  method = coop.Method(initial="a photo of a", context_length=9)
  params, _ = method.init(jax.random.key(0), small_clip)
  assert params["context"].shape == (4, 64)
  vectors = np.asarray(method.prepare(small_clip, NAMES)["each"]["vector"])
  assert vectors.max() == 3

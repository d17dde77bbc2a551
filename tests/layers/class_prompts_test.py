"""Prompts of context vectors and class names: positions, tries, words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import prefix_text
from zsad_jax.layers import class_prompts

START, STOP, END = 49406, 269, 49407
NORMAL, ANOMALOUS = [5967], [21612, 526, 879]  # "anomalous" has three tokens.
NUT, BOARD = [4044, 6491], [26235, 268, 1972]  # "metal nut", "pcb-board".
STATES = ("normal {}", "anomalous {}")
GROUPS = class_prompts.phrases(["metal_nut", "pcb-board"], STATES)
VECTORS = np.random.default_rng(0).normal(size=(20, 64)).astype(np.float32)


def test_underscores_in_names_are_spaces_and_hyphens_stay():
  assert GROUPS == [
    ["normal metal nut", "anomalous metal nut"],
    ["normal pcb-board", "anomalous pcb-board"],
  ]
  text = class_prompts.placeholder("X X", GROUPS[0][0])
  assert text == "X X normal metal nut."
  assert class_prompts.placeholder_words(3) == "X X X"
  assert class_prompts.placeholder_words(3, "a photo") == "a photo"


LAYOUTS = {
  ("end", 4): lambda v, name: [*v, *name],
  ("middle", 4): lambda v, name: [*v[:2], *name, *v[2:]],
  ("middle", 5): lambda v, name: [*v[:2], *name, *v[2:]],  # The larger half.
  ("front", 4): lambda v, name: [*name, *v],
}


@pytest.mark.parametrize("own_vectors", [False, True])
@pytest.mark.parametrize("position, m", LAYOUTS)
def test_prompts_by_hand(small_clip, position, m, own_vectors):
  backbone = prefix_text.PrefixText(small_clip)
  words = class_prompts.placeholder_words(m)
  options = {"position": position, "own_vectors": own_vectors}
  built = class_prompts.build(backbone, GROUPS, words, **options)
  vectors = jnp.asarray(VECTORS[None, : 2 * m])
  ours = class_prompts.encode(backbone, built, vectors)
  for i, name in enumerate((NUT, BOARD)):
    for j, state in enumerate((NORMAL, ANOMALOUS)):
      first = j * m if own_vectors else 0
      symbols = [-1 - first - k for k in range(m)]
      inner = LAYOUTS[position, m](symbols, [*state, *name])
      prompt = [START, *inner, STOP, END]
      expected = prefix_text.by_hand(small_clip, prompt, VECTORS)
      np.testing.assert_allclose(ours[i, j], expected, rtol=1e-4, atol=1e-4)


def test_common_beginnings_are_computed_once(small_clip):
  count = lambda **options: class_prompts.num_tokens(
    class_prompts.build(small_clip, [GROUPS[0]], "X X X X", **options)
  )
  end = len([*NORMAL, *NUT]) + len([*ANOMALOUS, *NUT]) + 2 * len([STOP, END])
  assert count() == 1 + 4 + end
  assert count(position="front") == 1 + 2 * 4 + end
  assert count(own_vectors=True) == 1 + 2 * 4 + end


def test_each_group_has_its_own_vectors(small_clip):
  backbone = prefix_text.PrefixText(small_clip)
  built = class_prompts.build(backbone, GROUPS, "X X")
  rows = class_prompts.select(built, jnp.array([1, 0, 1]))
  vectors = jnp.asarray(VECTORS[:6].reshape(3, 2, -1))
  ours = class_prompts.encode(backbone, rows, vectors)
  for i, group in enumerate((1, 0, 1)):
    alone = class_prompts.select(built, jnp.array([group]))
    expected = class_prompts.encode(backbone, alone, vectors[i : i + 1])
    np.testing.assert_allclose(ours[i], expected[0], rtol=1e-5)


def test_a_context_begins_with_words(small_clip):
  rng = jax.random.key(0)
  found = class_prompts.init_context(rng, small_clip, 9, "a photo of a")
  table = np.asarray(small_clip.params["text"]["token_embedding"])
  np.testing.assert_array_equal(found, table[[320, 1125, 539, 320]])
  random = class_prompts.init_context(rng, small_clip, 9)
  assert random.shape == (9, 64)
  np.testing.assert_allclose(random.std(), 0.02, rtol=0.1)


@pytest.mark.parametrize("state", ["normal", "{} {}", "{name} {}"])
def test_a_state_has_one_place_for_the_name(state):
  with pytest.raises(ValueError, match='one "{}" for the name.*got'):
    class_prompts.check(("{}", state))

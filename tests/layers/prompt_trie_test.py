"""Tests of the prompt trie: results equal those of the single prompts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsad_jax.layers import prompt_trie, prompts

RNG = np.random.default_rng(5)
PROMPTS = [
  "a photo of a cat.",
  "a photo of a dog.",
  "a photo of a dog.",
  "a photo",
  "two dogs and a photo of a cat.",
]


WORDS = st.lists(st.integers(1, 3), min_size=1, max_size=5)


@given(st.lists(WORDS, min_size=1))
def test_a_node_attends_to_its_prefix_alone(words):
  ids = np.zeros((len(words), 6), int)
  for i, prompt in enumerate(words):
    ids[i, 1 : 1 + len(prompt)] = prompt
  end = np.array([len(prompt) for prompt in words])
  trie = prompt_trie.build(ids, end)
  prefixes = {
    tuple(prompt[: row + 1])
    for prompt, last in zip(ids, end)
    for row in range(last + 1)
  }
  assert len(trie.position) == len(prefixes)
  token = ids.ravel()[trie.source]
  for i, last in enumerate(trie.end):
    way = np.flatnonzero(trie.attention_mask[last])
    way = way[np.argsort(trie.position[way])]
    np.testing.assert_array_equal(token[way], ids[i, : end[i] + 1])
    np.testing.assert_array_equal(trie.position[way], np.arange(end[i] + 1))


def joined(clip, texts):
  """Embeddings of the nodes and the tower's arguments, with a padded twin."""
  ids, end = clip.tokenize(texts)
  less = prompt_trie.build(ids, np.minimum(end, 2))
  trie = prompt_trie.stack([prompt_trie.build(ids, end), less])
  embeds = clip.embed_tokens(ids.ravel()[trie.source])
  return embeds, jax.tree.map(jnp.asarray, trie)


@pytest.mark.parametrize("mode", ["overwrite", "insert"])
@pytest.mark.parametrize("first", [0, 1])
def test_the_text_tower_gives_the_results_of_single_prompts(
  mode, first, small_clip
):
  ids, end = small_clip.tokenize(PROMPTS)
  layers = jnp.asarray(RNG.normal(size=(3, 2, 2, 64)), jnp.float32)
  embeds, trie = joined(small_clip, PROMPTS)
  hooks = dict(prompt_mode=mode)
  found, _ = small_clip.text(
    embeds,
    trie.end,
    positions=trie.position,
    attention_mask=trie.attention_mask,
    prompts={j: layers[j] for j in range(first, 3)},
    **hooks,
  )
  assert found.shape == (2, len(PROMPTS), 32)
  for i, last in enumerate((end, np.minimum(end, 2))):
    alone, _ = small_clip.text(
      small_clip.embed_tokens(ids),
      last,
      prompts={j: layers[j][i : i + 1] for j in range(first, 3)},
      **hooks,
    )
    np.testing.assert_allclose(found[i], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_gradients_equal_those_of_single_prompts(small_clip):
  ids, end = small_clip.tokenize(PROMPTS)
  embeds, trie = joined(small_clip, PROMPTS)
  way = jnp.asarray(RNG.normal(size=(len(PROMPTS), 32)), jnp.float32)
  prompt = jnp.asarray(RNG.normal(size=(1, 2, 64)), jnp.float32)

  def with_trie(prompt):
    found, _ = small_clip.text(
      embeds,
      trie.end,
      positions=trie.position,
      attention_mask=trie.attention_mask,
      prompts={1: prompt},
    )
    return (found[0] * way).sum()

  def alone(prompt):
    found, _ = small_clip.text(
      small_clip.embed_tokens(ids), end, prompts={1: prompt}
    )
    return (found * way).sum()

  found, expected = jax.grad(with_trie)(prompt), jax.grad(alone)(prompt)
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_adaclips_prompts_share_most_tokens(small_clip):
  ids, end = small_clip.tokenize(sum(prompts.adaclip("hazelnut"), []))
  trie = prompt_trie.build(ids, end)
  assert 2 * len(trie.position) < (end + 1).sum()

"""Sentences joined to a tree: the rows of each are those of it alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsad_jax.layers import prompt_trie, prompts

RNG = np.random.default_rng(5)
SENTENCES = [
  "a photo of a cat.",
  "a photo of a dog.",
  "a photo of a dog.",
  "a photo",
  "two dogs and a photo of a cat.",
]


WORDS = st.lists(st.integers(1, 3), min_size=1, max_size=5)


@given(st.lists(WORDS, min_size=1))
def test_a_node_sees_its_beginning_and_nothing_else(words):
  ids = np.zeros((len(words), 6), int)
  for i, sentence in enumerate(words):
    ids[i, 1 : 1 + len(sentence)] = sentence
  end = np.array([len(sentence) for sentence in words])
  tree = prompt_trie.build(ids, end)
  beginnings = {
    tuple(sentence[: row + 1])
    for sentence, last in zip(ids, end)
    for row in range(last + 1)
  }
  assert len(tree.position) == len(beginnings)
  token = ids.ravel()[tree.source]
  for i, last in enumerate(tree.end):
    way = np.flatnonzero(tree.attention_mask[last])
    way = way[np.argsort(tree.position[way])]
    np.testing.assert_array_equal(token[way], ids[i, : end[i] + 1])
    np.testing.assert_array_equal(tree.position[way], np.arange(end[i] + 1))


def joined(clip, texts):
  """Embeddings of the nodes and the tower's arguments, with a padded twin."""
  ids, end = clip.tokenize(texts)
  less = prompt_trie.build(ids, np.minimum(end, 2))
  tree = prompt_trie.stack([prompt_trie.build(ids, end), less])
  embeds = clip.embed_tokens(ids.ravel()[tree.source])
  return embeds, jax.tree.map(jnp.asarray, tree)


@pytest.mark.parametrize("mode", ["overwrite", "insert"])
@pytest.mark.parametrize("first", [0, 1])
def test_the_tower_reads_a_tree_as_its_sentences(mode, first, small_clip):
  ids, end = small_clip.tokenize(SENTENCES)
  layers = jnp.asarray(RNG.normal(size=(3, 2, 2, 64)), jnp.float32)
  embeds, tree = joined(small_clip, SENTENCES)
  hooks = dict(prompt_mode=mode)
  found, _ = small_clip.text(
    embeds,
    tree.end,
    positions=tree.position,
    attention_mask=tree.attention_mask,
    prompts={j: layers[j] for j in range(first, 3)},
    **hooks,
  )
  assert found.shape == (2, len(SENTENCES), 32)
  for i, last in enumerate((end, np.minimum(end, 2))):
    alone, _ = small_clip.text(
      small_clip.embed_tokens(ids),
      last,
      prompts={j: layers[j][i : i + 1] for j in range(first, 3)},
      **hooks,
    )
    np.testing.assert_allclose(found[i], alone, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_the_sentences(small_clip):
  ids, end = small_clip.tokenize(SENTENCES)
  embeds, tree = joined(small_clip, SENTENCES)
  way = jnp.asarray(RNG.normal(size=(len(SENTENCES), 32)), jnp.float32)
  prompt = jnp.asarray(RNG.normal(size=(1, 2, 64)), jnp.float32)

  def by_tree(prompt):
    found, _ = small_clip.text(
      embeds,
      tree.end,
      positions=tree.position,
      attention_mask=tree.attention_mask,
      prompts={1: prompt},
    )
    return (found[0] * way).sum()

  def alone(prompt):
    found, _ = small_clip.text(
      small_clip.embed_tokens(ids), end, prompts={1: prompt}
    )
    return (found * way).sum()

  found, expected = jax.grad(by_tree)(prompt), jax.grad(alone)(prompt)
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_adaclips_sentences_share_most_of_what_they_say(small_clip):
  ids, end = small_clip.tokenize(sum(prompts.adaclip("hazelnut"), []))
  tree = prompt_trie.build(ids, end)
  assert 2 * len(tree.position) < (end + 1).sum()

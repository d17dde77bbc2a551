"""Tests of `zsad_jax.backbones.clip.tokenizer`."""

import gzip
import json
import pathlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from zsad_jax.backbones.clip import tokenizer

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"


@pytest.fixture
def other_vocabulary(tmp_path, monkeypatch):
  """Path that the tokenizer reads as its vocabulary during a test."""
  path = tmp_path / "vocabulary.txt.gz"
  monkeypatch.setattr(tokenizer, "VOCABULARY", path)
  caches = (tokenizer._vocabulary, tokenizer._piece_ids)
  for cache in caches:
    cache.cache_clear()
  yield path
  for cache in caches:
    cache.cache_clear()


@pytest.fixture(scope="module")
def transformers_tokenizer(tmp_path_factory):
  """Independent implementation with the merges of our vocabulary file."""
  transformers = pytest.importorskip("transformers")
  folder = tmp_path_factory.mktemp("tokenizer")
  ids, ranks = tokenizer._vocabulary()
  merges = [" ".join(pair) for pair in ranks]
  (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
  (folder / "merges.txt").write_text(
    "\n".join(["#version: 0.2", *merges]), encoding="utf-8"
  )
  return transformers.CLIPTokenizer.from_pretrained(folder)


def test_ids_of_the_official_tokenizer():
  with np.load(GOLDENS / "clip_outputs.npz") as golden:
    texts = json.loads(golden["texts_utf8"].tobytes())
    expected = golden["token_ids"]
  ids = tokenizer.encode(texts, truncate=True)
  assert ids.dtype == np.int32
  np.testing.assert_array_equal(ids, expected)


def test_known_ids():
  ids = tokenizer.encode(["X", "N A", "damaged object."], context_length=8)
  assert ids.tolist() == [
    [49406, 343, 49407, 0, 0, 0, 0, 0],
    [49406, 333, 320, 49407, 0, 0, 0, 0],
    [49406, 13568, 14115, 269, 49407, 0, 0, 0],
  ]
  assert tokenizer.end_positions(ids).tolist() == [2, 3, 4]


def test_the_end_position_is_the_first_end_token():
  ids = tokenizer.encode(["a <|endoftext|> b", "a"])
  assert tokenizer.end_positions(ids).tolist() == [2, 2]


@pytest.mark.parametrize(
  ("text", "plain"),
  [
    ("  A\t\nPhoto  ", "a photo"),
    ("<b> &amp;lt; 3", "<b> < 3"),  # Escaped twice.
    ("Ã©tÃ©", "été"),  # UTF-8 read as Latin-1.
    ("ﬁn", "fin"),  # A ligature.
  ],
)
def test_cleaning(text, plain):
  assert tokenizer.clean(text) == plain
  np.testing.assert_array_equal(*tokenizer.encode([text, plain]))


def test_contractions_are_split_in_any_case():
  # lower() leaves the long s as it is.
  assert tokenizer._PIECES.findall("it'ſ it's") == ["it", "'ſ", "it", "'s"]


WORDS = st.text("abcdeghilmnoprstuvyAEIORST0123456789'.,-!?/_#%()", min_size=1)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(words=st.lists(WORDS, max_size=8))
def test_agrees_with_transformers(transformers_tokenizer, words):
  text = " ".join(words)
  expected = transformers_tokenizer(text)["input_ids"]
  ids = tokenizer.encode([text], context_length=len(expected))
  assert ids[0].tolist() == expected


def test_too_long_text_is_an_error():
  text = "X " * 76
  with pytest.raises(ValueError, match="needs 78 ids.*holds 77.*'X X"):
    tokenizer.encode(["fine", text])
  ids = tokenizer.encode([text], truncate=True)
  assert ids[0].tolist() == [49406] + [343] * 75 + [49407]
  assert tokenizer.encode(["X " * 75])[0, -1] == 49407  # Just fits.


def test_one_string_is_an_error():
  with pytest.raises(ValueError, match="list of texts"):
    tokenizer.encode("a photo")


def test_no_texts():
  assert tokenizer.encode([]).shape == (0, 77)


def test_missing_vocabulary(other_vocabulary):
  with pytest.raises(FileNotFoundError, match=f"{other_vocabulary} is missing"):
    tokenizer.encode(["a photo"])


def test_another_vocabulary(other_vocabulary):
  other_vocabulary.write_bytes(gzip.compress(b"#version\ni n\nt h\n"))
  with pytest.raises(ValueError, match="md5 is .* expected 933b7abb"):
    tokenizer.encode(["a photo"])

"""OpenAI's byte-pair tokenizer for CLIP.

Radford et al., arXiv:2103.00020, Section 2.4. The ids equal those of OpenAI's
`clip/simple_tokenizer.py`, including its cleaning of HTML and of broken
encodings, which other implementations omit.
"""

import functools
import gzip
import hashlib
import html
import itertools
import math
import pathlib
from collections.abc import Sequence

import ftfy
import jax
import numpy as np
import regex
from jaxtyping import Int

VOCABULARY = pathlib.Path(__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
VOCABULARY_MD5 = "933b7abbbbde62c36f02f0e6ccde464f"  # Of the .gz file.
# 49408 ids: 256 bytes, 256 bytes that end a word, merges, two special tokens.
NUM_MERGES = 49408 - 2 * 256 - 2

START, END = "<|startoftext|>", "<|endoftext|>"
START_ID, END_ID = 49406, 49407
WORD_END = "</w>"

# Special tokens, English contractions, letters, single digits, other symbols.
_PIECES = regex.compile(
  r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
  r"|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
  regex.IGNORECASE,
)


def encode(
  texts: Sequence[str], *, context_length: int = 77, truncate: bool = False
) -> Int[np.ndarray, "n t"]:
  """Return the token ids of each text, padded with zeros.

  Args:
    texts: n texts; an empty text is allowed.
    context_length: t, length of the result; that of the text tower.
    truncate: cut a text that is too long to its first t - 1 ids and the end
      token, instead of raising an error.

  Returns:
    int32 (n, t): 49406, the text's ids, 49407, zeros.

  Raises:
    ValueError: `texts` is one string, or a text needs more than t ids.
    FileNotFoundError: the vocabulary file is missing.
  """
  if isinstance(texts, str):
    raise ValueError(f"Expected a list of texts, got one string: {texts!r}.")
  result = np.zeros((len(texts), context_length), np.int32)
  for row, text in zip(result, texts):
    ids = [START_ID, *_text_ids(text), END_ID]
    if len(ids) > context_length:
      if not truncate:
        raise ValueError(
          f"A text needs {len(ids)} ids, start and end included, but the "
          f"text tower holds {context_length}: {text!r}. Shorten it, or "
          "pass truncate=True."
        )
      ids = [*ids[: context_length - 1], END_ID]
    row[: len(ids)] = ids
  return result


def end_positions(
  ids: Int[np.ndarray | jax.Array, "*n t"],
) -> Int[np.ndarray, "*n"]:
  """Return the position of each end token: the first 49407, the largest id."""
  return np.argmax(np.asarray(ids), axis=-1)


def clean(text: str) -> str:
  """Repair encodings and HTML entities, collapse spaces, make lower case."""
  text = ftfy.fix_text(text)
  text = html.unescape(html.unescape(text))  # Web pages escape "&amp;" twice.
  return regex.sub(r"\s+", " ", text).strip().lower()


def _text_ids(text):
  pieces = _PIECES.findall(clean(text))
  return list(itertools.chain.from_iterable(map(_piece_ids, pieces)))


@functools.lru_cache(maxsize=1 << 16)
def _piece_ids(piece):
  """Merge the symbols of one piece, the best-ranked pair first."""
  ids, ranks = _vocabulary()
  if piece in (START, END):
    return (ids[piece],)
  letters = byte_letters()
  symbols = [letters[byte] for byte in piece.encode("utf-8")]
  symbols[-1] += WORD_END
  while len(symbols) > 1:
    rank = lambda pair: ranks.get(pair, math.inf)
    pair = min(itertools.pairwise(symbols), key=rank)
    if pair not in ranks:
      break
    symbols = _merge(symbols, pair)
  return tuple(ids[symbol] for symbol in symbols)


def _merge(symbols, pair):
  """Merge every occurrence of the pair, from left to right."""
  merged = []
  rest = iter(range(len(symbols)))
  for i in rest:
    if tuple(symbols[i : i + 2]) == pair:
      merged.append("".join(pair))
      next(rest)
    else:
      merged.append(symbols[i])
  return merged


@functools.cache
def byte_letters() -> dict[int, str]:
  """Return the character that represents each byte, in the order of the ids.

  Printable bytes of Latin-1 represent themselves and come first; the others
  map to code points from 256 on, so that no symbol is a space or a control
  character.
  """
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in printable]
  letters = {byte: chr(byte) for byte in printable}
  return letters | {byte: chr(256 + i) for i, byte in enumerate(others)}


def whole_words() -> list[tuple[str, int]]:
  """Return all words that are a single token, with their ids, in order."""
  ids, _ = _vocabulary()
  ends = len(WORD_END)
  return [
    (symbol[:-ends], index)
    for symbol, index in ids.items()
    if symbol.endswith(WORD_END) and symbol[:-ends].isalpha()
  ]


@functools.cache
def _vocabulary():
  """Return the id of each symbol and the rank of each pair to merge."""
  lines = _read_vocabulary().split("\n")[1 : 1 + NUM_MERGES]
  merges = [tuple(line.split()) for line in lines]
  letters = list(byte_letters().values())
  symbols = [
    *letters,
    *(letter + WORD_END for letter in letters),
    *map("".join, merges),
    START,
    END,
  ]
  ids = {symbol: i for i, symbol in enumerate(symbols)}
  return ids, {pair: rank for rank, pair in enumerate(merges)}


def _read_vocabulary():
  if not VOCABULARY.is_file():
    raise FileNotFoundError(
      f"{VOCABULARY} is missing. It belongs to the package: install "
      "zsad_jax again, or fetch the file that VOCABULARY.md describes."
    )
  data = VOCABULARY.read_bytes()
  md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
  if md5 != VOCABULARY_MD5:
    raise ValueError(
      f"{VOCABULARY} is not CLIP's vocabulary: its md5 is {md5}, expected "
      f"{VOCABULARY_MD5}. Fetch the file that VOCABULARY.md describes."
    )
  return gzip.decompress(data).decode("utf-8")

"""Docstrings of modules and functions as blocks of text and of code."""

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

# Code spans of docstrings, which have single backquotes, and of reST.
_SPAN = re.compile(r"``.+?``|`[^`]+`", re.S)
_COMMAND = re.compile(r"(?:python3? -m|zsad|curl|pip) ")


class Block(NamedTuple):
  """Part of a docstring.

  Attributes:
    text: without indentation.
    is_code: whether line breaks and columns are kept.
  """

  text: str
  is_code: bool


def blocks(docstring: str) -> Iterator[Block]:
  """Yield the paragraphs of a docstring, and its indented parts as code.

  Args:
    docstring: dedented.
  """
  code: list[str] = []
  for part in re.split(r"\n\s*\n", docstring.strip("\n")):
    for indented, group in itertools.groupby(part.splitlines(), _is_indented):
      lines = list(group)
      if indented:
        code += ["", *lines] if code else lines
        continue
      if code:
        yield _code(code)
        code = []
      text = "\n".join(lines)
      yield Block(text, bool(_COMMAND.match(text)))
  if code:
    yield _code(code)


def _is_indented(line: str) -> bool:
  return line.startswith("  ")


def _code(lines: list[str]) -> Block:
  margin = min(len(x) - len(x.lstrip()) for x in lines if x)
  return Block("\n".join(line[margin:] for line in lines).strip("\n"), True)


def escape_markdown(text: str) -> str:
  """Return text in which only code spans are markup."""
  return _outside_spans(text, r"[\\*_\[\]<>#|$]", lambda span: span)


def escape_rest(text: str) -> str:
  """Return reST text in which only code spans are markup."""
  double = lambda span: span if span.startswith("``") else f"`{span}`"
  return _outside_spans(text, r"[\\*|]|_(?!\w)", double)


def _outside_spans(text, special, convert):
  escape = lambda part: re.sub(special, lambda m: "\\" + m[0], part)
  result, last = [], 0
  for span in _SPAN.finditer(text):
    result += [escape(text[last : span.start()]), convert(span[0])]
    last = span.end()
  return "".join(result) + escape(text[last:])


def to_markdown(docstring: str) -> str:
  """Return a module's docstring as Markdown."""
  return "\n\n".join(
    f"```text\n{block.text}\n```"
    if block.is_code
    else escape_markdown(block.text)
    for block in blocks(docstring)
  )


def to_rest(docstring: str) -> str:
  """Return a module's docstring as reST."""
  indented = lambda text: re.sub(r"(?m)^(?=.)", "   ", text)
  return "\n\n".join(
    f".. code-block:: text\n\n{indented(block.text)}"
    if block.is_code
    else escape_rest(block.text)
    for block in blocks(docstring)
  )

"""Rules about words: the field's terms in text and names.

Docstrings, comments, help of flags, messages and Markdown files are searched
for terms that have a standard equivalent, and names of functions, classes and
arguments for those that were replaced. Other string literals, such as prompts
and the old names in `runs/migration.py`, are data and not searched.
"""

import ast
import io
import pathlib
import re
import tokenize
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FILES = [
  path
  for folder in ("zsad_jax", "configs", "tests", "notebooks")
  for suffix in ("*.py", "*.md")
  for path in sorted((ROOT / folder).rglob(suffix))
]
FILES += [
  *sorted(ROOT.glob("*.md")),
  *sorted((ROOT / "docs").rglob("*.md")),
  *sorted((ROOT / "data").rglob("*.md")),
  *sorted((ROOT / "benchmarks").rglob("*.md")),
  ROOT / "setup.py",
]

# Pattern -> term to write instead.
PHRASES = {
  r"beside": "next to, with, in addition to, compared with",
  r"pictures?": "image",
  r"taps?": "feature layer",
  r"sentence[- ]trees?": "prompt trie",
  # "One sentence" and "a sentence" are mostly those of a message.
  r"(?<!\bone )(?<!\ba )sentences?": "prompt",
  r"(?:un)?sound": "normal",
  r"suspicions?": "anomaly probability",
  r"look(?:s|ed|ing)? at": "inspect, read, use",
  r"worth a look": "qualitative example",
  r"made to order": "synthetic",
  r"of one's own": "own",
  r"what (?:is|was|were|are) (?:said|seen|known)": "the subject itself",
  r"says": "states, returns, prints",
  r"say nothing": "the fact itself",
  r"stands(?! for\b)": "is",
  r"now and then": "periodically",
  r"out of its depth": "does not transfer",
  r"asked for the state": "zero-shot baseline",
  # The word itself may be quoted: it is a part of prompts and file names.
  r"(?<![\"'`_])damaged(?![\"'`_])": "anomalous, corrupt",
}
OPENING = re.compile(r"(?:What|Which)\b")  # Of docstrings.
FUNCTION_OPENING = re.compile(r"(?:What|Which|Whether)\b")

NAMES = {
  "remember": "build_memory_bank",
  "beside": "fuse_with_references",
  "suspicion": "patch_anomaly_prob",
  "taps": "feature_layers",
  "tap": "feature_layer",
  "asking": "num_queries",
  "sentence_tree": "prompt_trie",
}
# Ordinary words otherwise, such as an argument `share`.
DEFINITIONS = {
  "look": "flush, update, inspect",
  "whole": "all_gather",
  "mine": "local_rows",
  "share": "local_slice",
  "exchange": "all_gather_object",
  "Plus": "WithMemoryBank",
  "Kept": "ExactPixelMetrics",
  "Streamed": "StreamingPixelMetrics",
}

# (file, matched text in lower case) -> reason.
ALLOWED: dict[tuple[str, str], str] = {}
MESSAGES = ("print", "debug", "info", "warning", "error", "exception")

_CODE = re.compile(r"``.+?``|`[^`]+`")
_FENCE = re.compile(r"^```.*?^```", re.M | re.S)
_WORDS = re.compile(
  "|".join(rf"(?P<p{i}>(?<!\w){p}(?!\w))" for i, p in enumerate(PHRASES)),
  re.IGNORECASE,
)


def texts(path: pathlib.Path) -> Iterator[tuple[int, str]]:
  """Yield line numbers and the text to search of a file."""
  source = path.read_text(encoding="utf-8")
  if path.suffix == ".md":
    yield from markdown(source, skip_tables=path.name == "CHANGELOG.md")
    return
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      yield token.start[0], token.string
  tree = ast.parse(source)
  for _, line, text in docstrings(tree):
    yield line, text
  for node in ast.walk(tree):
    if isinstance(node, ast.Raise) or is_message(node):
      for line, text in literals(node):
        yield line, text


def markdown(source: str, *, skip_tables: bool) -> Iterator[tuple[int, str]]:
  """Yield the prose of a Markdown page; code is left out."""
  blank = lambda match: "\n" * match[0].count("\n")
  prose = _CODE.sub(blank, _FENCE.sub(blank, source))
  for number, line in enumerate(prose.splitlines(), 1):
    if not (skip_tables and line.startswith("|")):
      yield number, line


def docstrings(tree: ast.AST) -> Iterator[tuple[ast.AST, int, str]]:
  """Yield the owner, line and text of every docstring."""
  kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
  for node in ast.walk(tree):
    if isinstance(node, kinds):
      text = ast.get_docstring(node, clean=False)
      if text is not None:
        yield node, node.body[0].lineno, text


def is_message(node: ast.AST) -> bool:
  """Return whether a node defines a flag, logs or prints."""
  if not isinstance(node, ast.Call):
    return False
  name = getattr(node.func, "attr", getattr(node.func, "id", ""))
  return name.startswith("DEFINE_") or name in MESSAGES


def is_property(node: ast.FunctionDef) -> bool:
  """Return whether a function is a property: its docstring is a noun phrase."""
  return any("property" in ast.unparse(d) for d in node.decorator_list)


def literals(node: ast.AST) -> Iterator[tuple[int, str]]:
  """Yield string literals of more than one word, parts of f-strings too."""
  for child in ast.walk(node):
    if isinstance(child, ast.Constant) and isinstance(child.value, str):
      if " " in child.value.strip():
        yield child.lineno, child.value


def names(tree: ast.AST) -> Iterator[tuple[int, str, bool]]:
  """Yield line, name and whether it is a definition."""
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      yield node.lineno, node.name, True
    elif isinstance(node, ast.arg):
      yield node.lineno, node.arg, False
    elif isinstance(node, ast.keyword) and node.arg:
      yield node.value.lineno, node.arg, False
    elif isinstance(node, ast.Name):
      yield node.lineno, node.id, False
    elif isinstance(node, ast.Attribute):
      yield node.lineno, node.attr, False


def hits(path: pathlib.Path, root: pathlib.Path = ROOT) -> list[str]:
  """Return one line per word of a file that has a standard equivalent."""
  name, found = str(path.relative_to(root)), {}
  replacements = list(PHRASES.values())
  for line, text in texts(path):
    for match in _WORDS.finditer(text):
      if (name, match[0].lower()) in ALLOWED:
        continue
      at = line + text.count("\n", 0, match.start())
      better = replacements[int((match.lastgroup or "p0")[1:])]
      found[at, match[0]] = f"{name}:{at}: {match[0]!r}, write: {better}"
  if path.suffix == ".py":
    found |= dict(name_hits(path, name))
  return [found[key] for key in sorted(found)]


def name_hits(path, name):
  """Yield hits among docstring openings and identifiers."""
  tree = ast.parse(path.read_text(encoding="utf-8"))
  for node, line, text in docstrings(tree):
    is_function = isinstance(node, ast.FunctionDef) and not is_property(node)
    opening = FUNCTION_OPENING if is_function else OPENING
    if match := opening.match(text.strip()):
      yield (line, match[0]), f"{name}:{line}: docstring opens with {match[0]}"
  for line, word, defines in names(tree):
    better = NAMES.get(word) or (DEFINITIONS.get(word) if defines else None)
    if better:
      yield (line, word), f"{name}:{line}: name {word}, write: {better}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_words_are_the_fields_terms(path):
  found = hits(path)
  assert not found, "\n".join(found)


@pytest.mark.parametrize(
  ("name", "text", "number"),
  [
    ("a.py", '"""Map beside a picture."""\n', 2),
    ("a.py", "x = 1  # It looks at the image.\n", 1),
    ("a.py", 'x = "beside a picture"\n', 0),
    ("a.py", 'raise ValueError(f"{x} stands there")\n', 1),
    ("a.py", 'flags.DEFINE_bool("beside", 0, "Damaged copies.")\n', 1),
    ("a.py", 'def f():\n  """Whether it is."""\n', 1),
    ("a.py", '@property\ndef f():\n  """Whether it is."""\n', 0),
    ("a.py", "def remember(taps):\n  return x.share\n", 2),
    ("a.py", "def share():\n  pass\n", 1),
    ("a.md", "A picture, `beside`.\n```\nbeside\n```\n", 1),
    ("CHANGELOG.md", "| `taps`, beside |\n", 0),
    ("a.md", 'The prompt "damaged {}" and a table stand for it.\n', 0),
  ],
)
def test_planted_words_are_found(name, text, number, tmp_path):
  path = tmp_path / name
  path.write_text(text)
  assert len(hits(path, tmp_path)) == number


def test_every_exception_is_used():
  exceptions = dict(ALLOWED)
  for path in FILES:
    name = str(path.relative_to(ROOT))
    for _, text in texts(path):
      for match in _WORDS.finditer(text):
        exceptions.pop((name, match[0].lower()), None)
  assert not exceptions

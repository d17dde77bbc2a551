"""The documentation site: its pages from the code, and its links."""

import importlib
import pathlib
import re
import sys

import pytest
from absl import flags

from tests.contract import docs_test
from zsad_jax.runtime import launcher

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module", autouse=True)
def extension():
  """Import the modules of the site as its conf.py does."""
  sys.path.insert(0, str(DOCS / "_ext"))
  yield
  sys.path.remove(str(DOCS / "_ext"))


def module(name):
  return importlib.import_module(name)


def test_every_command_has_a_page_with_all_its_flags(monkeypatch):
  before = set(flags.FLAGS)
  pages = dict(module("commands").pages())
  assert set(flags.FLAGS) == before
  assert pages.keys() == launcher.commands().keys()
  for name, text in pages.items():
    listed = re.findall(r"^`--(?:\[no\])?(\w+)(?:=.*)?`$", text, re.M)
    expected = docs_test.defined_flags(name, [], monkeypatch)
    expected -= set(flags.FlagValues())
    assert expected <= set(listed), name
    if name != "benchmark":
      assert sorted(expected) == sorted(listed)


def test_required_flags_come_first_and_defaults_are_stated():
  page = dict(module("commands").pages())["predict"]
  entries = re.findall(r"^`--(.*)`\n: (.*)$", page, re.M)
  assert entries[0][0] == "workdir=TEXT" and entries[0][1].endswith("Required.")
  found = dict(entries)
  assert found["output=TEXT"].endswith("Default: `predictions`.")
  assert "[no]skip_corrupt" in found and "references=A,B,..." in found


def test_every_configuration_has_a_page():
  names = {path for path, _ in module("configurations").pages()}
  for path in (ROOT / "configs").glob("[a-z]*.py"):
    if path.stem != "common":
      assert f"configurations/{path.stem}.myst" in names


def test_every_method_metric_and_layer_is_in_the_api():
  names = {path for path, _ in module("api").pages()}
  for folder in ("methods", "metrics", "layers"):
    for path in (ROOT / "zsad_jax" / folder).glob("[a-z]*.py"):
      assert f"api/{folder}/{path.stem}.rst" in names


def test_every_page_is_in_a_table_of_contents():
  index = (DOCS / "index.md").read_text(encoding="utf-8")
  trees = re.findall(r"^```\{toctree\}\n(.*?)^```$", index, re.M | re.S)
  listed = {line for tree in trees for line in tree.splitlines()}
  pages = {path.stem for path in DOCS.glob("*.md")}
  assert pages - {"index", "README"} <= listed
  for path in (DOCS / "howto").glob("*.md"):
    assert f"howto/{path.stem}" in listed
    readme = (DOCS / "README.md").read_text(encoding="utf-8")
    assert f"(howto/{path.name})" in readme


def test_links_of_pages_lead_to_pages_of_the_site():
  links = module("links")
  text = (
    "[a](../README.md#licence) [b](design.md) [c](../zsad_jax/types.py) "
    "[d](https://example.com/x) [e](#here) [f](../data/paper_results) "
    "[g](README.md)\n```\n[h](../README.md)\n```\n"
    "[i](../notebooks/01_quickstart.ipynb)"
  )
  assert links.rewrite(text, DOCS, DOCS, "") == (
    "[a](/reference/repository/README.myst#licence) [b](/design.md) "
    "[c](../zsad_jax/types.py) [d](https://example.com/x) [e](#here) "
    "[f](/reference/repository/data/paper_results/README.myst) "
    "[g](/index.md)\n```\n[h](../README.md)\n```\n"
    "[i](/reference/notebooks/01_quickstart.ipynb)"
  )
  url = "https://example.com/blob/main"
  found = links.rewrite(text, DOCS, DOCS, url)
  assert f"[c]({url}/zsad_jax/types.py)" in found


def test_markdown_files_of_other_folders_are_found_by_links():
  found = {
    str(path.relative_to(ROOT)) for path in module("links").repository_files()
  }
  assert {"README.md", "CONTRIBUTING.md", "benchmarks/README.md"} <= found
  assert not any(name.startswith("docs") for name in found)


def test_indented_parts_of_docstrings_are_code():
  prose = module("prose")
  text = "A *b*, see `f(_x_)`.\n\nTable:\n  a  1\n\n  b  2\nAfter it.\n"
  assert [tuple(block) for block in prose.blocks(text)] == [
    ("A *b*, see `f(_x_)`.", False),
    ("Table:", False),
    ("a  1\n\nb  2", True),
    ("After it.", False),
  ]
  assert prose.to_markdown(text) == (
    "A \\*b\\*, see `f(_x_)`.\n\nTable:\n\n```text\na  1\n\nb  2\n```\n\n"
    "After it."
  )
  assert "A \\*b\\*, see ``f(_x_)``." in prose.to_rest(text)

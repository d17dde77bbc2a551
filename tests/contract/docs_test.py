"""Rules about the documentation: length, links, commands, flags, repetition."""

import collections
import importlib
import importlib.util
import pathlib
import re

import pytest
from absl import flags
from ml_collections import config_flags

from configs import adaclip, tiny_clip
from tests.helpers import refusals

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# All Markdown files of the repository, without caches and virtual environments.
MARKDOWN = [
  *sorted(ROOT.glob("*.md")),
  *(
    path
    for folder in ("benchmarks", "data", "docs", "tests", "zsad_jax")
    for path in sorted((ROOT / folder).rglob("*.md"))
  ),
]
TEST_COMMAND = "python -m pytest -q -n 2 --dist worksteal"

_FENCE = re.compile(r"^```.*?^```", re.M | re.S)
_INLINE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_COMMAND = re.compile(
  r"(?:python3? -m zsad_jax\.|(?<![\w./-])zsad )(\w+)([^;&|`]*)"
)
_FLAG = re.compile(r"(?<!\S)--(\w[\w.-]*)")


def relative(path):
  return str(path.relative_to(ROOT))


def commands(text):
  """Return (command, rest of the line) for all code of a Markdown page."""
  fenced = _FENCE.findall(text)
  spans = _INLINE.findall(_FENCE.sub("", text))
  code = [block.replace("\\\n", " ") for block in fenced]
  code += [span.replace("\n", " ") for span in spans]
  lines = [line for block in code for line in block.splitlines()]
  lines = [re.sub(r"\s#.*", "", line) for line in lines]
  return [match for line in lines for match in _COMMAND.findall(line)]


def defined_flags(command, arguments, monkeypatch):
  """Return the names of the flags that a command defines.

  They are defined in a fresh `FlagValues`, not in the global one.
  """
  values = flags.FlagValues()

  def redirected(define):
    return lambda *args, **kw: define(*args, **{"flag_values": values, **kw})

  for library in (flags, config_flags):
    for name in dir(library):
      if name.startswith("DEFINE_") and name != "DEFINE_flag":
        monkeypatch.setattr(library, name, redirected(getattr(library, name)))
  monkeypatch.setattr(flags, "FLAGS", values)
  monkeypatch.setattr(flags, "mark_flag_as_required", lambda *_, **__: None)
  spec = importlib.util.find_spec(f"zsad_jax.{command}")
  is_package = spec.submodule_search_locations is not None
  modules = [spec.name + (".__main__" if is_package else "")]
  if command == "benchmark":
    modules += [f"zsad_jax.benchmark.{a}" for a in arguments[:1]]
  for module in modules:
    importlib.import_module(module).define_flags()
  monkeypatch.undo()
  return set(values)


def slug(heading):
  """Return the anchor that GitHub gives a heading."""
  text = re.sub(r"[`*\[\]]|\(.*?\)", "", heading.lower()).strip()
  return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def test_the_readme_has_at_most_200_lines():
  assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_the_readme_and_the_workflow_have_the_same_test_command():
  assert TEST_COMMAND in (ROOT / "README.md").read_text()
  workflow = ROOT / ".github" / "workflows" / "ci.yml"
  assert f"run: {TEST_COMMAND}\n" in workflow.read_text()


def test_images_are_small():
  for path in (ROOT / "docs" / "images").iterdir():
    assert path.stat().st_size <= 300 * 1024, path.name


@pytest.mark.parametrize("page", MARKDOWN, ids=relative)
def test_relative_links_exist(page):
  for link in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
    if re.match(r"[a-z]+:", link):
      continue
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    assert target.exists(), link
    if anchor:
      headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.M)
      assert anchor in map(slug, headings), link


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_named_commands_and_flags_exist(page, monkeypatch):
  for command, rest in commands(page.read_text(encoding="utf-8")):
    assert importlib.util.find_spec(f"zsad_jax.{command}"), command
    arguments = [a for a in rest.split() if not a.startswith("-")]
    used = {name.partition(".")[0] for name in _FLAG.findall(rest)}
    if not used:
      continue
    known = defined_flags(command, arguments, monkeypatch)
    unknown = {name.replace("-", "_") for name in used} - known
    assert not unknown, f"{command}: --{', --'.join(sorted(unknown))}"


@pytest.mark.parametrize("page", MARKDOWN, ids=relative)
def test_named_configuration_fields_exist(page):
  configs = (adaclip.get_config(), tiny_clip.get_config())
  text = page.read_text(encoding="utf-8")
  for field in re.findall(r"--config\.([a-z]\w*)", text):
    sections = ("method", "optax")  # Filled in by each configuration.
    assert field in sections or any(field in c for c in configs), field


def test_no_text_is_repeated_between_files():
  found = collections.defaultdict(set)
  for page in MARKDOWN:
    for line in _FENCE.sub("", page.read_text(encoding="utf-8")).splitlines():
      if len(line) > 60 and re.search("[A-Za-z]", line):
        found[line.strip()].add(relative(page))
  repeated = {k: sorted(v) for k, v in found.items() if len(v) > 1}
  assert not repeated, repeated


def test_a_command_is_found_with_its_flags():
  text = "```bash\nzsad train --config=clip \\\n    --workdir=x  # --no\n```\n"
  text += "Use `python -m zsad_jax.data list --markdown`, not zsad."
  assert commands(text) == [
    ("train", " --config=clip      --workdir=x "),
    ("data", " list --markdown"),
  ]


def test_the_table_of_refusals_is_that_of_the_code():
  page = (ROOT / "docs" / "refusals.md").read_text(encoding="utf-8")
  assert page == refusals.markdown(), (
    "Run python -m tests.helpers.refusals > docs/refusals.md."
  )
  assert page.count("\n- ") > 300

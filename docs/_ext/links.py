"""Links between files of the repository, in the site and on GitHub.

Pages are written for GitHub: links are relative paths of the checkout. In the
site a link to a Markdown file or a notebook leads to its page, and a link to
another file to the repository, or to a copy where its address is not known.
"""

import os
import pathlib
import re
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
GENERATED = DOCS / "reference"
SUFFIX = ".myst"  # Of generated pages: no Markdown file of the repository.

_FENCE = re.compile(r"^(?:```|~~~).*?^(?:```|~~~)", re.M | re.S)
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_SCHEME = re.compile(r"[a-z][a-z+.-]*:")


def targets(text: str, folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yield the files of the repository that a page links to.

  Args:
    text: of the page.
    folder: that links are relative to.
  """
  for found in _LINK.finditer(_FENCE.sub("", text)):
    path = found[2].partition("#")[0]
    if path and not _SCHEME.match(path):
      yield _file(folder / path)


def _file(path: pathlib.Path) -> pathlib.Path:
  """Return a file; of a folder, its README."""
  path = pathlib.Path(os.path.normpath(path))
  readme = path / "README.md"
  return readme if readme.is_file() else path


def page(path: pathlib.Path) -> str | None:
  """Return the page of a file, from the folder `docs`; None if it has none."""
  if path in (DOCS / "README.md", DOCS / "index.md"):
    return "/index.md"
  if path.is_relative_to(DOCS) and path.suffix == ".md":
    return f"/{path.relative_to(DOCS).as_posix()}"
  relative = path.relative_to(ROOT)
  if path.suffix == ".md":
    name = relative.with_suffix(SUFFIX).as_posix()
    return f"/reference/repository/{name}"
  if path.suffix == ".ipynb":
    return f"/reference/{relative.as_posix()}"
  return None


def rewrite(
  text: str, folder: pathlib.Path, page_folder: pathlib.Path, url: str
) -> str:
  """Return a page whose links are those of the site.

  Args:
    text: of the page.
    folder: of its file in the repository.
    page_folder: where the page is in the site's source.
    url: address of the repository's files; "" where it is not known.
  """

  def convert(found):
    link, hash_, anchor = found[2].partition("#")
    if not link or _SCHEME.match(link):
      return found[0]
    path = _file(folder / link)
    if not path.is_relative_to(ROOT):
      return found[0]
    target = page(path)
    if target is None and url:
      target = f"{url}/{path.relative_to(ROOT).as_posix()}"
    elif target is None:
      target = pathlib.Path(os.path.relpath(path, page_folder)).as_posix()
      hash_ = anchor = ""
    return f"{found[1]}{target}{hash_}{anchor}{found[3]}"

  result, last = [], 0
  for fence in _FENCE.finditer(text):
    result += [_LINK.sub(convert, text[last : fence.start()]), fence[0]]
    last = fence.end()
  return "".join(result) + _LINK.sub(convert, text[last:])


def repository_files() -> list[pathlib.Path]:
  """Return the Markdown files outside of `docs` that pages lead to."""
  found = {ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"}
  pages = [*found]
  pages += [p for p in DOCS.rglob("*.md") if not p.is_relative_to(GENERATED)]
  while pages:
    path = pages.pop()
    for target in targets(path.read_text(encoding="utf-8"), path.parent):
      new = target.suffix == ".md" and target.is_relative_to(ROOT)
      if new and target not in found and not target.is_relative_to(DOCS):
        found.add(target)
        pages.append(target)
  return sorted(found)

"""Tables of the registered data sets."""

import pathlib

from tests.datasets.entries_test import mvtec_layout
from zsad_jax.datasets import listing, registry

README = pathlib.Path(__file__).parents[2] / "data" / "README.md"
BEGIN = "<!-- begin: zsad_jax.data list --markdown -->\n"
END = "\n<!-- end -->"


def test_the_table_of_the_readme_is_the_printed_one():
  text = README.read_text(encoding="utf-8")
  table = text.split(BEGIN)[1].split(END)[0]
  assert table == listing.markdown(), "Run zsad_jax.data list --markdown."


def test_the_table_has_every_data_set_with_its_facts():
  lines = listing.markdown().splitlines()
  for name, entry in registry.ENTRIES.items():
    if entry.folders:
      (line,) = [x for x in lines if x.startswith(f"| `{name}` |")]
      counts = "/".join("?" if c is None else str(c) for c in entry.counts)
      assert counts in line and entry.licence in line and entry.source in line
      assert line.count(" | ") == 6


def test_the_list_names_found_and_missing_folders(tmp_path):
  mvtec_layout(tmp_path / "mvtec", ["carpet"])
  listed = listing.text(str(tmp_path)).splitlines()
  assert len(listed) == 22 and str(tmp_path / "mvtec") in listed[0]
  assert "not in" in listed[1] and "visa" in listed[1]

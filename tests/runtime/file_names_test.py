"""Names of result files for any name of an image or class."""

import os

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from zsad_jax.runtime import file_names

# Names of classes come from JSON, which has surrogates and NUL as well.
texts = st.text(st.characters(exclude_categories=[]), max_size=300)
awkward = st.sampled_from(
  (
    *("..", "../../x", "/etc/x", "", ".", "a/../..", "a\\..\\b", "\0", "con"),
    *("NUL.txt", "a.", "a ", ".hidden", "x" * 300, "ß" * 150, "\udcdf", "\n"),
    *("nut", "Nut", "a_b", "a/b", "metal nut", "100%", "it's", "größe"),
  )
)


def check(name):
  """A name is one component of a path, valid on every system."""
  assert 0 < len(name.encode("utf-8")) <= file_names.LIMIT
  assert os.path.basename(name) == name and not name.startswith(".")
  assert not set(name) & set('<>:"/\\|?*\0\n') and name[-1] not in ". "
  assert name.split(".")[0].lower() not in ("con", "nul", "aux", "prn")


@settings(max_examples=50)
@given(st.lists(texts | awkward, unique=True, max_size=8))
@example(["a/b", "a\\b", "a_b", "A_B"])
def test_names_of_classes_are_safe_and_distinct(names):
  found = file_names.safe_names(names)
  assert [*found] == names
  for name in found.values():
    check(name)
  assert len({n.casefold() for n in found.values()}) == len(names)
  backwards = file_names.safe_names(names[::-1])
  assert backwards == found
  for name in names:  # Also one by one, and again.
    assert file_names.safe_name(name) == file_names.safe_name(name)
  assert len({file_names.safe_name(n) for n in names}) == len(names)


@pytest.mark.parametrize(
  "name", ["nut", "Größe 3", "100%", "it's", "a.b", "x-y"]
)
def test_usual_names_are_unchanged(name):
  assert file_names.safe_name(name) == name
  assert file_names.safe_names(["pill", name]) == {"pill": "pill", name: name}


def test_a_name_cannot_imitate_a_digest():
  imitated = file_names.safe_name("../x")
  assert file_names.safe_name(imitated) != imitated


@settings(max_examples=50)
@given(texts | awkward)
def test_any_text_can_be_shown_in_one_line(text):
  shown = file_names.shown(text)
  shown.encode("utf-8")
  assert len(shown.splitlines()) <= 1


def test_bytes_of_other_encodings_are_shown():
  name = os.fsdecode(b"Stra\xdfe\n.png")
  assert file_names.shown(name) == "Stra\\xdfe\\n.png"
  assert file_names.shown("größe.png") == "größe.png"


def test_a_name_with_a_digest_is_valid_and_depends_on_the_key():
  found = [file_names.with_digest("a/b: ö", key) for key in ("1", "2", "1")]
  assert found[0] == found[2] != found[1]
  assert file_names.safe_name(found[0]).startswith("a_b_ ö-")
  assert len(file_names.with_digest("x" * 999, "1")) <= file_names.LIMIT

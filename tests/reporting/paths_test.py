"""Reports hold no path of the machine, and can always be written."""

import os

from hypothesis import given
from hypothesis import strategies as st

from zsad_jax.reporting import paths as paths_lib

NAME = st.text("ab .-_é", min_size=1, max_size=6).filter(
  lambda s: s.strip(" .") == s
)


@given(st.lists(NAME, min_size=1, max_size=3), st.lists(NAME, max_size=3))
def test_folders_of_an_evaluation_are_replaced(above, below):
  root = "/" + "/".join(["data", *above, "parts"])
  found = paths_lib.Paths({root: "parts", "/data": ""})
  path = "/".join([root, *below, "0.png"])
  text = found.text(f"{path}: cannot be read ({root}).")
  assert (
    text == f"{'/'.join(['parts', *below, '0.png'])}: cannot be read (parts)."
  )
  assert paths_lib.relative(path, root, found) == "/".join([*below, "0.png"])


def test_other_paths_lose_their_folders():
  found = paths_lib.Paths({})
  assert (
    found.text("see /srv/share/x/good.png, please") == "see good.png, please"
  )
  for text in (
    "https://example.org/a/b/c",
    "normal/anomalous images/s, 1/2",
    "ViT-L/14@336 and data/parts/x.png",
  ):
    assert found.text(text) == text
  home = os.path.expanduser("~")
  nested = {"a": [f"{home}/x", {"b": f"{os.getcwd()}/data/y.png"}], "c": 1.5}
  assert found.value(nested) == {"a": ["~/x", {"b": "data/y.png"}], "c": 1.5}


def test_names_in_other_bytes_are_escaped():
  name = os.fsdecode(b"Stra\xdfe.png")
  assert paths_lib.printable(name) == r"Stra\udcdfe.png"
  assert paths_lib.Paths({}).text(name).encode()

"""Names of data sets: different ones never share a name."""

import os

from hypothesis import given
from hypothesis import strategies as st

from zsad_jax.datasets import naming

PART = st.sampled_from(["parts", "site1", "site2", "mvtec", "Parts", "a b"])
ROOT = st.lists(PART, min_size=1, max_size=4).map(lambda p: "/" + "/".join(p))


def test_the_shortest_ends_that_differ():
  folders = ["/d/site1/parts", "/d/site2/parts", "/d/nuts"]
  places = [naming.Place("", folder) for folder in folders]
  assert [*naming.names(places).values()] == [
    "site1/parts",
    "site2/parts",
    "nuts",
  ]
  assert naming.names(places[:1]) == {places[0]: "parts"}


def test_a_folder_is_no_registered_data_set(tmp_path, monkeypatch):
  (tmp_path / "mvtec").mkdir()
  monkeypatch.chdir(tmp_path)
  places = [naming.place("mvtec"), naming.place("./mvtec")]
  assert places[0].registered == "mvtec" and not places[1].registered
  registered, folder = naming.names(places).values()
  assert registered == "mvtec" and folder == f"{tmp_path.name}/mvtec"
  # Alone, too: published numbers belong to the registered one.
  assert naming.names(places[1:])[places[1]] == folder


def test_all_paths_of_a_folder_are_one_data_set(tmp_path, monkeypatch):
  (tmp_path / "parts").mkdir()
  (tmp_path / "link").symlink_to(tmp_path / "parts")
  monkeypatch.chdir(tmp_path)
  specs = [
    "parts",
    "./parts/",
    str(tmp_path / "parts"),
    "link",
    "parts/../link",
  ]
  assert len({naming.place(spec) for spec in specs}) == 1


@given(st.lists(ROOT, min_size=1, max_size=8), st.booleans())
def test_names_are_unique_ends_of_paths(roots, registered):
  places = [naming.Place("", root) for root in roots]
  if registered:
    places += [naming.Place("mvtec", "/x"), naming.Place("tfds:mvtec", "/y/z")]
  names = naming.names(places)
  assert names.keys() == {*places}
  # Equal in case alone would be one folder on some systems.
  assert len({name.casefold() for name in names.values()}) == len(names)
  for place, name in names.items():
    if place.key or name.endswith(place.digest):
      continue
    assert (place.root + os.sep).endswith(f"/{name}/")
    assert name != "mvtec"
    *_, shorter = ["", *name.split("/", 1)[1:]]
    others = [n for p, n in names.items() if p != place]
    ends = [p.root for p in places if p != place]
    assert (
      not shorter
      or shorter == "mvtec"
      or any(
        f"{end}/".casefold().endswith(f"/{shorter}/".casefold()) for end in ends
      )
    ), others


def test_names_in_use_are_left_to_their_data_set():
  place = naming.Place("", "/d/site2/parts")
  names = naming.names([place], lambda name, _: name != "parts")
  assert names == {place: "site2/parts"}
  assert naming.names([place], lambda name, _: False)[place].startswith(
    "parts-"
  )

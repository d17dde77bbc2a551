"""Text, JSON and CSV files of any common encoding."""

import csv
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsad_jax.runtime import text_files

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32")
values = st.recursive(
  st.none() | st.booleans() | st.integers() | st.text(),
  lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
  max_leaves=8,
)


@settings(max_examples=40)
@given(values, st.sampled_from(ENCODINGS))
def test_json_is_read_in_every_encoding(tmp_path_factory, value, encoding):
  path = tmp_path_factory.mktemp("json") / "a.json"
  text = json.dumps(value, ensure_ascii=encoding == "utf-8")
  path.write_bytes(text.encode(encoding))
  assert text_files.load_json(path) == value


@settings(max_examples=40)
@given(st.binary(max_size=60))
def test_anything_else_is_an_error_that_names_the_file(
  tmp_path_factory, content
):
  path = tmp_path_factory.mktemp("json") / "a.json"
  path.write_bytes(content)
  for read in (text_files.load_json, lambda p: [*text_files.csv_rows(p)]):
    try:
      read(path)
    except ValueError as error:
      assert str(error).startswith(str(path))


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b'{"a": 1, "a": 2}', 'the key "a" is listed twice'),
    (b'[{"b": {"c": [], "c": []}}]', 'the key "c" is listed twice'),
    (b"[" * 100_000, "nested too deeply|not valid JSON"),
    (b'"\xe4"', "byte 0xe4 at 1 is not UTF-8"),
    (b"[\0]\0", "UTF-16 without a byte order mark"),
    (b"", "not valid JSON"),
  ],
)
def test_errors_of_json(content, message, tmp_path):
  path = tmp_path / "a.json"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=rf"a\.json: .*({message})"):
    text_files.load_json(path)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_tables(encoding, tmp_path):
  path = tmp_path / "a.csv"
  path.write_bytes("image,mask\r\nä.png,\r\n\r\nb.png,m\r\n".encode(encoding))
  assert list(text_files.csv_records(path, ("image", "mask"))) == [
    (2, {"image": "ä.png", "mask": ""}),
    (4, {"image": "b.png", "mask": "m"}),
  ]
  with pytest.raises(ValueError, match=r"a\.csv: expected one column 'label'"):
    list(text_files.csv_records(path, ("label",)))
  path.write_bytes("image;mask\na;b\n".encode(encoding))
  with pytest.raises(ValueError, match="found image;mask"):
    list(text_files.csv_records(path, ("image",)))
  path.write_bytes("image,mask\na\n".encode(encoding))
  with pytest.raises(ValueError, match="line 2: expected 2 cells"):
    list(text_files.csv_records(path, ("image",)))


@settings(max_examples=40)
@given(st.lists(st.lists(st.text("a\r\n,\" '"), min_size=2, max_size=2)))
def test_rows_are_read_as_they_were_written(rows):
  file = io.StringIO(newline="")
  writer = text_files.CsvWriter(file)
  for row in rows:
    writer.writerow(row)
  assert [*csv.reader(io.StringIO(file.getvalue(), newline=""))] == rows

"""Tests of the tables of results."""

import csv
import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsad_jax.reporting import tables

NAN = math.nan
NAMES = tables.METRICS + tables.COUNTS


def row(*values):
  return dict(zip(NAMES, values))


# The second category has no normal image, the last data no AUPRO at all.
ROWS = {
  "bottle": row(0.5, 0.25, 1.0, 0.9125, 0.2, 0.3, NAN, 20, 63),
  "hazelnut": row(NAN, NAN, NAN, 0.7, 0.4, 0.1, NAN, 0, 7),
  "pill": row(0.0, 0.75, 0.5, 0.8, 0.6, 0.2, NAN, 26, 141),
}
TO_TEXT = {
  "text": lambda rows: tables.to_text(rows, "title"),
  "markdown": lambda rows: tables.to_markdown(rows, "title"),
  "csv": tables.to_csv,
}


@given(st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=20))
def test_mean_is_over_what_is_defined(values):
  rows = {
    f"c{i}": {} if v is None else {"image_ap": v, "pixel_ap": NAN}
    for i, v in enumerate(values)
  }
  mean, defined = tables.mean_row(rows)
  known = [v for v in values if v is not None]
  assert set(mean) == set(defined) == set(tables.METRICS)
  assert defined["image_ap"] == len(known) and defined["pixel_ap"] == 0
  assert math.isnan(mean["pixel_ap"])
  np.testing.assert_allclose(
    mean["image_ap"], np.mean(known) if known else NAN, rtol=1e-12
  )


def test_undefined_is_no_zero_in_a_mean():
  mean, defined = tables.mean_row(ROWS)
  assert (mean["image_auroc"], defined["image_auroc"]) == (0.25, 2)
  assert (mean["pixel_ap"], defined["pixel_ap"]) == (pytest.approx(0.4), 3)
  assert math.isnan(mean["pixel_aupro"]) and defined["pixel_aupro"] == 0


def test_text():
  expected = """\
WinCLIP on mvtec
RULE
category     image_auroc  image_ap  image_f1_max  pixel_auroc  pixel_ap  \
pixel_f1_max  pixel_aupro  num_normal  num_anomalous
RULE
bottle             50.0      25.0         100.0         91.2      20.0   \
       30.0          n/a           20             63
hazelnut            n/a       n/a           n/a         70.0      40.0   \
       10.0          n/a            0              7
pill                0.0      75.0          50.0         80.0      60.0   \
       20.0          n/a           26            141
RULE
mean (of 3)        25.0*     50.0*         75.0*        80.4      40.0   \
       20.0          n/a
* defined for fewer categories: image_auroc 2, image_ap 2, image_f1_max 2
"""
  text = tables.to_text(ROWS, "WinCLIP on mvtec")
  assert text == expected.replace("RULE", "-" * 125)


def test_markdown():
  lines = tables.to_markdown(ROWS, "WinCLIP on mvtec").split("\n")
  assert lines[0] == "### WinCLIP on mvtec"
  assert lines[2] == "| category | " + " | ".join(NAMES) + " |"
  assert lines[4] == (
    "| bottle | 50.0 | 25.0 | 100.0 | 91.2 | 20.0 | 30.0 | n/a | 20 | 63 |"
  )
  assert lines[7] == (
    r"| mean (of 3) | 25.0\* | 50.0\* | 75.0\* | 80.4 | 40.0 "
    "| 20.0 | n/a |  |  |"
  )
  assert lines[9].startswith(r"\* defined for fewer") and lines[10:] == [""]
  assert {line.count(" |") for line in lines[4:8]} == {len(NAMES) + 1}


def test_markdown_survives_odd_names():
  text = tables.to_markdown({"a|b*": ROWS["pill"]}, "title")
  assert r"| a\|b\* |" in text


def test_csv_keeps_every_digit():
  rows = ROWS | {'a, "b"': row(1 / 3, 0.1, 0.2, 2 / 3, NAN, 0, 1, 3, 4)}
  text = tables.to_csv(rows)
  assert "nan" not in text and "\nhazelnut,,,,0.7," in text
  read = list(csv.DictReader(io.StringIO(text)))
  assert [r.pop("category") for r in read] == [*rows, "mean (of 4)"]
  number = lambda cell: float(cell) if cell else NAN
  for cells, values in zip(read, [*rows.values(), tables.mean_row(rows)[0]]):
    np.testing.assert_array_equal(
      [number(cells[name]) for name in NAMES],
      [values.get(name, NAN) for name in NAMES],
    )


@pytest.mark.parametrize("form", TO_TEXT)
def test_full_rows_need_no_note(form):
  rows = {name: row(*np.full(7, 0.5), 3, 4) for name in "ab"}
  text = TO_TEXT[form](rows)
  assert "mean (of 2)" in text
  assert "*" not in text and "n/a" not in text


@pytest.mark.parametrize("form", TO_TEXT)
def test_names_beyond_the_columns_are_not_shown(form):
  rows = {"pill": ROWS["pill"] | {"image_f1_threshold": 0.125}}
  assert TO_TEXT[form](rows) == TO_TEXT[form]({"pill": ROWS["pill"]})


@pytest.mark.parametrize("form", TO_TEXT)
def test_no_category_is_refused(form):
  with pytest.raises(ValueError, match="at least one category"):
    TO_TEXT[form]({})

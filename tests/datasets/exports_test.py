"""Exports of annotation tools are recognised and named."""

import json

import pytest

from tests.helpers.index_files import touch
from zsad_jax.datasets import image_files, registry

COCO = json.dumps({"info": {}, "images": [], "annotations": []})
LABELME = json.dumps({"version": "5", "shapes": [], "imagePath": "0.png"})
BOX = "0 0.5 0.5 0.25 0.1\n"
VOC = "<annotation><object/></annotation>"

EXPORTS = {
  "COCO": (
    {"annotations/instances_val.json": COCO, "images/0.png": ""},
    {"train/0.png": "", "train/_annotations.coco.json": COCO},
    {"0.png": "", "result.json": COCO},
  ),
  "YOLO": (
    {"images/val/0.png": "", "labels/val/0.txt": BOX, "data.yaml": ""},
    {
      "test/images/0.png": "",
      "test/labels/0.txt": BOX,
      "train/images/0.png": "",
      "train/labels/0.txt": "",
    },
    {"obj/0.jpg": "", "obj/0.txt": BOX, "obj/classes.txt": "scratch"},
    {"Images/0.png": "", "Labels/0.txt": "3 0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8"},
  ),
  "Pascal VOC": (
    {"JPEGImages/0.jpg": "", "Annotations/0.xml": VOC},
    {"test/0.jpg": "", "test/0.xml": VOC},
  ),
  "labelme": ({"0.png": "", "0.json": LABELME},),
}
CASES = [(kind, tree) for kind, trees in EXPORTS.items() for tree in trees]


def write(root, tree):
  touch(*(root / name for name in tree))
  for name, text in tree.items():
    if text:
      (root / name).write_text(text)


@pytest.mark.parametrize(("kind", "tree"), CASES)
def test_an_export_is_refused_by_name(kind, tree, tmp_path):
  write(tmp_path, tree)
  with pytest.raises(ValueError, match=kind) as error:
    registry.read_folder(tmp_path)
  assert "normal" in str(error.value) and "meta.json" in str(error.value)
  assert len(str(error.value).splitlines()) == 1
  assert image_files.find([tmp_path])  # Its images can be scored.


def test_a_known_layout_with_annotations_is_read_with_a_note(tmp_path):
  tree = {
    "normal/0.png": "",
    "anomalous/0.png": "",
    "anomalous/0.json": LABELME,
  }
  write(tmp_path, tree)
  found = registry.read_folder(tmp_path)
  assert found.counts == (0, 1, 1)
  assert ["labelme" in note for note in found.notes] == [True]


def test_other_json_and_text_is_no_export(tmp_path):
  tree = {"normal/0.png": "", "normal/0.json": "{}", "normal/0.txt": "good"}
  write(tmp_path, tree)
  assert not registry.read_folder(tmp_path).notes

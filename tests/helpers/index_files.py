"""Files to be listed, and the index files that list them."""

import json
import os


def touch(*paths):
  for path in paths:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def names(samples):
  return [os.path.basename(sample.image_path) for sample in samples]


def record(img_path, anomaly=0, **fields):
  return (
    dict(
      img_path=img_path,
      mask_path="",
      cls_name="nut",
      specie_name="",
      anomaly=anomaly,
    )
    | fields
  )


def write_meta(root, content):
  text = content if isinstance(content, str) else json.dumps(content)
  (root / "meta.json").write_text(text, encoding="utf-8")

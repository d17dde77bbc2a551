"""Independent reading of folders by the rules of docs/data.md."""

import json
import os

from PIL import Image, features

SUFFIXES = {
  *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp"),
  *(".jp2", ".j2k", ".tga", ".pbm", ".pgm", ".ppm", ".pnm"),
  *([".avif"] if features.check("avif") else []),
}
SYSTEM = {
  *("@eadir", "#recycle", "$recycle.bin", "__macosx", "lost+found"),
  "thumbs.db",
}
NORMAL = {
  *("good", "ok", "normal", "pass", "passed", "nominal", "healthy"),
  *("defect_free", "no_defect", "non_defective", "nondefective"),
}
ANOMALOUS = {
  *("anomalous", "anomaly", "anomalies", "abnormal", "ng", "nok", "not_ok"),
  *("bad", "defect", "defects", "defective", "fail", "failed"),
}


def _folded(name):
  return name.casefold().replace("-", "_").replace(" ", "_")


def _visible(name):
  return not name.startswith(".") and name.casefold() not in SYSTEM


def _names(folder):
  names = os.listdir(folder)
  if {"results.json", "results.csv"} <= {*names}:
    return [], names  # Results of an evaluation.
  return sorted(filter(_visible, names)), names


def subfolders(folder: str) -> list[str]:
  """Return the visible folders of a folder."""
  paths = [os.path.join(folder, name) for name in _names(folder)[0]]
  return [path for path in paths if os.path.isdir(path)]


def images_in(folder: str) -> list[str]:
  """Return the images of one folder, each file once."""
  visible, names = _names(folder)
  found = {}
  for name in visible:
    stem, suffix = os.path.splitext(name)
    path = os.path.join(folder, name)
    if suffix.lower() not in SUFFIXES or not os.path.isfile(path):
      continue
    drawn = [k for k in ("_overlay", "_mask") if name.endswith(f"{k}.png")]
    if drawn and f"{stem.removesuffix(drawn[0])}_map.npy" in names:
      continue
    if name == "preview.png" and "meta.json" in names:
      continue
    found.setdefault(os.path.realpath(path), path)
  return list(found.values())


def _is_run(folder):
  join = lambda name: os.path.join(folder, name)
  return os.path.isfile(join("config.json")) and (
    os.path.isdir(join("checkpoints")) or os.path.isfile(join("metrics.jsonl"))
  )


def images_below(root: str) -> list[str]:
  """Return the images of a folder and its subfolders, each file once."""
  found, seen, left = {}, set(), [root]
  real = os.path.realpath(root)
  while left:
    folder = left.pop()
    at = os.path.realpath(folder)
    contains = real != at and real.startswith(at.rstrip("/") + "/")
    if at in seen or contains:
      continue
    seen.add(at)
    if folder != root and _is_run(folder):
      continue
    for path in images_in(folder):
      found.setdefault(os.path.realpath(path), path)
    inner = subfolders(folder)
    names = {os.path.basename(path).casefold() for path in inner}
    for path in inner:
      name = os.path.basename(path).casefold()
      if name == "ground_truth" and "test" in names:
        continue
      if name == "masks" and names & {"normal", "anomalous", "images"}:
        continue
      left.append(path)
  return list(found.values())


def _called(folder, names):
  return [
    p for p in subfolders(folder) if _folded(os.path.basename(p)) in names
  ]


def _is_mvtec(folder):
  return any(subfolders(path) for path in _called(folder, {"test"}))


def _is_plain(folder):
  names = {_folded(os.path.basename(path)) for path in subfolders(folder)}
  return "normal" in names or bool(names & NORMAL and names & ANOMALOUS)


def _classes(folder, is_class, depth=4):
  if is_class(folder):
    return {os.path.realpath(folder): folder}
  found = {}
  for path in subfolders(folder) if depth else ():
    found = _classes(path, is_class, depth - 1) | found
  return found


def samples(root: str) -> dict[str, list[str]] | None:
  """Return the images of a data set: train, normal, anomalous.

  None: the folder has no known layout, or its index cannot be read.
  """
  found = {"train": [], "normal": [], "anomalous": []}
  if os.path.isfile(os.path.join(root, "meta.json")):
    return _of_index(root, found)
  if classes := _classes(root, _is_mvtec):
    for folder in classes.values():
      for train in _called(folder, {"train"}):
        for path in _called(train, NORMAL):
          found["train"] += images_in(path)
      for test in _called(folder, {"test"}):
        for path in subfolders(test):
          normal = _folded(os.path.basename(path)) in NORMAL
          found["normal" if normal else "anomalous"] += images_in(path)
    return found
  if classes := _classes(root, _is_plain):
    for folder in classes.values():
      for part, names in (("normal", NORMAL), ("anomalous", ANOMALOUS)):
        for path in _called(folder, names):
          found[part] += images_below(path)
    return found
  return None


def _of_index(root, found):
  with open(os.path.join(root, "meta.json"), "rb") as file:
    data = file.read()
  try:
    content = json.loads(data.decode(json.detect_encoding(data)))
  except ValueError:
    return None
  if not isinstance(content, dict):
    return None
  for phase, classes in content.items():
    for records in classes.values():
      for record in records:
        part = "anomalous" if record["anomaly"] else "normal"
        part = "train" if phase == "train" else part
        found[part].append(os.path.join(root, record["img_path"]))
  return found


def readable(path: str) -> bool:
  """Return whether Pillow reads one image of known range from a file."""
  try:
    with Image.open(path) as image:
      image.load()
      if image.mode == "I" and image.getextrema()[1] > 65535:
        return False
      return getattr(image, "n_frames", 1) == 1 and image.mode != "F"
  except Exception:  # Decoders raise many kinds.
    return False

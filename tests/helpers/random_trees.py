"""Hypothesis strategies of data-set folders with faults, and their files."""

import functools
import io
import json
import os
import pathlib
from collections.abc import Mapping

import numpy as np
from hypothesis import strategies as st
from PIL import Image

# Relative path -> bytes of a file; text: target of a link; None: a folder.
Tree = Mapping[str, bytes | str | None]

MODES = {
  ".png": ("RGB", "1", "L", "LA", "P", "RGBA", "I;16"),
  ".jpg": ("RGB", "L", "CMYK", "YCbCr"),
  ".bmp": ("RGB", "L", "P", "1"),
  ".tif": ("RGB", "L", "LA", "P", "RGBA", "I;16", "I", "F", "CMYK", "1"),
  ".webp": ("RGB", "RGBA"),
  ".pgm": ("L",),
  ".PNG": ("RGB", "L"),
}
FORMATS = {".jpg": "JPEG", ".tif": "TIFF", ".pgm": "PPM"}
SIDE = 12  # Pixels.
NORMAL = ("good", "ok", "OK", "Normal", "defect-free", "PASS")
ANOMALOUS = ("anomalous", "NG", "defects", "Anomaly", "not ok")
DEFECTS = ("cut", "NG", "Cut", "ä hole", "100%", "broken large", "anomalous")
ODD = (
  *("0", "00", "a b", "a%20b", "%s", "ä", "a\u0308", "日本", "a'b\"c", "a\nb"),
  *("\udcff", "x" * 180, "日" * 60, "con", "a.b", "[x]", "[0]*", "-dash"),
  *("#xywh=0,0,4,4", "0_overlay", "scores", "A", "a", "a_b", "{0}", "\\"),
  *("\u2028", "a,b", " ", "~", "0_mask", "e" + "\u0301", "\x1b[31m"),
)
_IN_NAMES = st.characters(
  exclude_characters="/\0", exclude_categories=["Cs"], max_codepoint=0x1F6FF
)
NAMES = st.one_of(
  st.sampled_from(ODD),
  st.text(_IN_NAMES, min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
  ),
)
OTHERS = (
  *("0.heic", "0.gif", "0.txt", "0.json", "0.xml", "notes.md", "0.dcm"),
  *("noname", "Thumbs.db", ".DS_Store", "._0.png", "0.npy", "x.svg"),
)
TRASH = (".hidden", "@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX")
DAMAGE = ("empty", "half", "random", "text", "folder", "broken link", "loop")


@functools.cache
def image_bytes(suffix: str, mode: str, seed: int, pages: int = 1) -> bytes:
  """Return an image file; different seeds give different pixels."""
  drawn = [_image(mode, seed + 1000 * i) for i in range(pages)]
  file, kind = io.BytesIO(), FORMATS.get(suffix.lower(), suffix[1:].upper())
  more = dict(save_all=True, append_images=drawn[1:]) if pages > 1 else {}
  drawn[0].save(file, kind, **more)
  return file.getvalue()


def _image(mode, seed):
  rng = np.random.default_rng(seed)
  pixels = rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
  if mode in ("I;16", "I", "F"):
    kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    return Image.fromarray((200 * pixels[..., 0].astype(int)).astype(kind))
  return Image.fromarray(pixels).convert(mode)


MASKS = (
  *("right", "right", "right", "ones", "palette", "colours", "alpha", "jpg"),
  *("empty", "white", "size", "16 bits", "pages", "broken", "float nan"),
)


@functools.cache
def mask_file(kind: str, seed: int) -> tuple[str, bytes]:
  """Return suffix and content of the file of a mask."""
  mask = np.zeros((SIDE, SIDE), np.uint8)
  mask[2 : 6 + seed % 4, 3:8] = 255
  if kind == "broken":
    return ".png", b"\x89PNG\r\n\x1a\n no mask"
  suffix, pages, save = ".png", 1, Image.fromarray(mask)
  if kind == "ones":
    save = Image.fromarray(mask // 255)
  elif kind == "palette":
    save = Image.fromarray(mask // 255).convert("P")
    save.putpalette([255, 0, 0, 0, 0, 0])
  elif kind == "colours":
    save = Image.fromarray(np.stack([mask, mask // 2, 0 * mask], 2))
  elif kind == "alpha":
    save = Image.fromarray(np.stack([mask] * 3 + [255 - mask], 2))
  elif kind == "jpg":
    suffix = ".jpg"
  elif kind == "empty":
    save = Image.new("L", (SIDE, SIDE))
  elif kind == "white":
    save = Image.fromarray(255 - mask)
  elif kind == "size":
    save = save.resize((7, 9))
  elif kind == "16 bits":
    save = Image.fromarray(mask.astype(np.uint16) * 257)
  elif kind == "pages":
    suffix, pages = ".tif", 2
  elif kind == "float nan":
    suffix, save = (
      ".tif",
      Image.fromarray(np.where(mask, np.nan, 0).astype("f")),
    )
  file = io.BytesIO()
  more = dict(save_all=True, append_images=[save]) if pages > 1 else {}
  save.save(file, FORMATS.get(suffix, suffix[1:].upper()), **more)
  return suffix, file.getvalue()


def _rarely(one_of: int) -> st.SearchStrategy[bool]:
  return st.sampled_from([False] * (one_of - 1) + [True])


class _Draft:
  """A tree that is being drawn."""

  def __init__(self, draw):
    self.draw, self.tree, self._seed = draw, {}, 0

  def images(self, folder, *, least=0, most=3):
    """Draw the images of a folder; return their paths without suffix."""
    draw, found = self.draw, []
    self.tree.setdefault(folder, None)
    for i in range(draw(st.integers(least, most))):
      name = draw(st.one_of(st.just(f"{i:03}"), NAMES))
      plain = not draw(_rarely(3))
      suffix = ".png" if plain else draw(st.sampled_from(sorted(MODES)))
      mode = "RGB" if plain else draw(st.sampled_from(MODES[suffix]))
      self._seed += draw(st.sampled_from([1] * 9 + [0]))  # 0: a copy.
      pages = 2 if suffix == ".tif" and draw(_rarely(8)) else 1
      content = image_bytes(suffix, mode, self._seed, pages)
      self.tree[f"{folder}/{name}{suffix}"] = content
      found.append(f"{folder}/{name}")
    return found

  def masks(self, images, root, folder, ending):
    """Draw the masks of images; most often they are as expected."""
    draw = self.draw
    how = draw(st.sampled_from(["all"] * 4 + ["none", "mixed", "mixed"]))
    if how == "none":
      return
    self.tree.setdefault(folder, None)
    for i, image in enumerate(images):
      kind = "right"
      if how == "mixed":
        kind = draw(st.sampled_from([*MASKS, "missing", "folder", "stray"]))
      if kind == "missing":
        continue
      name = image.removeprefix(f"{root}/")
      if kind == "folder":
        suffix, content = mask_file("right", i)
        self.tree[f"{folder}/{name}/000{suffix}"] = content
        self.tree[f"{folder}/{name}/001{suffix}"] = content
        continue
      suffix, content = mask_file("right" if kind == "stray" else kind, i)
      name = f"{name}_x" if kind == "stray" else name
      self.tree[f"{folder}/{name}{ending}{suffix}"] = content


def _mvtec(draft, name):
  draw = draft.draw
  if not draw(_rarely(4)):
    good = draw(st.sampled_from(NORMAL))
    draft.images(f"{name}/train/{good}", least=1)
  test = draw(st.sampled_from(["test", "test", "Test"]))
  if not draw(_rarely(8)):
    draft.images(f"{name}/{test}/{draw(st.sampled_from(NORMAL))}", least=1)
  for defect in draw(
    st.lists(st.one_of(st.sampled_from(DEFECTS), NAMES), min_size=1, max_size=2)
  ):
    folder = f"{name}/{test}/{defect}"
    images = draft.images(folder)
    ending = draw(st.sampled_from(["_mask", "_mask", ""]))
    draft.masks(images, folder, f"{name}/ground_truth/{defect}", ending)


def _plain(draft, name):
  draw = draft.draw
  inner = draw(st.sampled_from(["", "", "/lot 1"]))
  draft.images(f"{name}/{draw(st.sampled_from(NORMAL))}{inner}", least=1)
  if not draw(_rarely(4)):
    folder = f"{name}/{draw(st.sampled_from(ANOMALOUS))}"
    images = draft.images(f"{folder}{inner}", least=1)
    masks = draw(st.sampled_from(["masks", "masks", "Mask", "ground_truth"]))
    ending = draw(st.sampled_from(["", "_mask"]))
    draft.masks(images, folder, f"{name}/{masks}", ending)


def _meta(draft, root):
  draw = draft.draw
  images = draft.images(f"{root}/files", least=1, most=4)
  paths = [p for p in draft.tree if p.rpartition(".")[0] in images]
  phases = {"train": {}, "test": {}}
  for i, path in enumerate(paths):
    label = draw(st.integers(0, 1))
    mask = ""
    if label and draw(st.booleans()):
      kind = draw(st.sampled_from(MASKS))
      suffix, content = mask_file(kind, i)
      mask = f"masks/{i}{suffix}"
      draft.tree[f"{root}/{mask}"] = content
    fault = draw(st.sampled_from([""] * 9 + ["missing", "outside", "class"]))
    listed = path.removeprefix(f"{root}/")
    listed = {"missing": "no.png", "outside": f"../{listed}"}.get(fault, listed)
    name = draw(
      st.sampled_from(["nut", "..", "a/b", "/etc", "CON", "é", "a\n"])
    )
    train = not label and draw(st.booleans())
    record = {"img_path": listed, "mask_path": mask, "anomaly": label}
    record |= {"cls_name": name, "specie_name": "x" if label else "good"}
    rows = phases["train" if train else "test"].setdefault(name, [])
    rows += [record] * (2 if fault == "class" else 1)
  text = json.dumps(phases)
  encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
  content = text.encode(encoding)
  if draw(_rarely(10)):
    content = content[: len(content) // 2]
  draft.tree[f"{root}/meta.json"] = content


def _none(draft, root):
  draw = draft.draw
  for folder in draw(st.lists(NAMES, max_size=3, unique=True)):
    draft.images(f"{root}/{folder}")
  draft.images(root, least=1)


def _parents(path):
  return [str(p) for p in pathlib.PurePosixPath(path).parents][:-1]


def _noise(draft, root):
  """Add a file, folder or link that is no ordinary image."""
  draw, tree = draft.draw, draft.tree
  folders = sorted({parent for path in tree for parent in _parents(path)})
  folder = draw(st.sampled_from([f for f in folders if f] or [root]))
  kind = draw(
    st.sampled_from(
      ["other", "trash", "link", "up", "outside", "file link", "result"]
      + ["images", "export", "evaluated", "run", "nested", "preview"]
    )
  )
  if kind == "other":
    tree[f"{folder}/{draw(st.sampled_from(OTHERS))}"] = b"something else"
  elif kind in ("trash", "images", "nested"):
    name = draw(st.sampled_from(TRASH) if kind == "trash" else NAMES)
    draft.images(f"{folder}/{name}" + "/deep/er" * (kind == "nested"))
  elif kind in ("link", "up", "outside"):
    up = [*_parents(folder), folder]
    goal = draw(st.sampled_from(up if kind == "up" else folders or [root]))
    goal = "outside" if kind == "outside" else goal
    name = draw(st.one_of(st.sampled_from(["link", "cut", "class2"]), NAMES))
    tree.setdefault(f"{folder}/{name}", f"{{top}}/{goal}")
  elif kind == "file link":
    files = sorted(p for p, c in tree.items() if isinstance(c, bytes))
    goal = draw(st.sampled_from(files or ["outside/0.png"]))
    tree.setdefault(f"{folder}/linked.png", f"{{top}}/{goal}")
  elif kind == "result":
    tree[f"{folder}/0_overlay.png"] = image_bytes(".png", "RGB", 77)
    if draw(st.booleans()):
      tree[f"{folder}/0_map.npy"] = b"map"
  elif kind == "export":
    name, text = draw(
      st.sampled_from(
        [
          ("x.coco.json", '{"images": [], "annotations": []}'),
          ("000.txt", "0 0.5 0.5 0.1 0.1\n"),
          ("000.xml", "<annotation></annotation>"),
          ("000.json", '{"shapes": []}'),
        ]
      )
    )
    tree[f"{folder}/{name}"] = text.encode()
  elif kind == "evaluated":
    tree[f"{folder}/elsewhere/results.json"] = b"{}"
    tree[f"{folder}/elsewhere/results.csv"] = b""
    tree[f"{folder}/elsewhere/bolt.png"] = image_bytes(".png", "RGB", 78)
  elif kind == "run":
    tree[f"{folder}/run/config.json"] = b"{}"
    tree[f"{folder}/run/metrics.jsonl"] = b""
    tree[f"{folder}/run/bolt.png"] = image_bytes(".png", "RGB", 79)
  else:
    tree[f"{folder}/preview.png"] = image_bytes(".png", "RGB", 80)


def _damage(draft):
  """Damage a file."""
  draw, tree = draft.draw, draft.tree
  files = sorted(p for p, c in tree.items() if isinstance(c, bytes))
  if not files:
    return
  path = draw(st.sampled_from(files))
  content = tree[path]
  tree[path] = {
    "empty": b"",
    "half": content[: len(content) // 2],
    "random": draw(st.binary(min_size=1, max_size=64)),
    "text": b"<html>404 not found</html>",
    "folder": None,
    "broken link": "{top}/nowhere",
    "loop": "{top}/" + path,
  }[draw(st.sampled_from(DAMAGE))]


@st.composite
def trees(draw) -> tuple[str, Tree]:
  """Draw the name of a folder and all files of it and of "outside"."""
  draft = _Draft(draw)
  root = draw(
    st.sampled_from(["data"] * 4 + ["data [1]", "dä ta", "elpv", "test", "a%s"])
  )
  draft.images("outside", least=1, most=2)
  layout = draw(
    st.sampled_from(
      [_mvtec, _mvtec, _mvtec, _plain, _plain, _plain, _meta, _none]
    )
  )
  if layout in (_mvtec, _plain):
    classes = st.lists(
      st.one_of(st.sampled_from(["", "/bolt", "/nut", "/a/b"]), NAMES),
      min_size=1,
      max_size=2,
      unique=True,
    )
    for name in draw(classes):
      name = name if name[:1] in ("", "/") else f"/{name}"
      layout(draft, root + name)
  else:
    layout(draft, root)
  for _ in range(draw(st.sampled_from([0, 0, 0, 1, 1, 2, 3]))):
    _noise(draft, root)
  for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
    _damage(draft)
  draft.tree.setdefault(root, None)
  return root, draft.tree


def write(tree: Tree, top: pathlib.Path) -> None:
  """Write a tree below a folder; a name that is taken is left out."""
  for path, content in tree.items():
    target = os.path.join(top, path)
    try:
      os.makedirs(os.path.dirname(target), exist_ok=True)
      if content is None:
        os.makedirs(target, exist_ok=True)
      elif isinstance(content, str):
        os.symlink(content.replace("{top}", str(top)), target)
      else:
        with open(target, "xb") as file:
          file.write(content)
    except OSError:  # A file where a folder is expected, or a long name.
      continue

"""Score images with an exported detector: python predict.py PATH [PATH ...].

A PATH is an image or a folder of images. Needs onnxruntime, Pillow and NumPy.
The detector is in the folder of this file. A file that cannot be read makes the
exit status 1.
"""

import json
import pathlib
import sys

import numpy as np
import onnxruntime  # pyright: ignore[reportMissingImports]
from PIL import Image, ImageOps

FOLDER = pathlib.Path(__file__).resolve().parent


def read(path: pathlib.Path, size: int) -> np.ndarray:
  """Return an image as RGB, resized as in the training: uint8 (s, s, 3)."""
  image = ImageOps.exif_transpose(Image.open(path))
  if image.mode[0] in "IF":  # 16-bit grey, or 32 bits.
    grey = np.asarray(image).astype(np.int64)
    if image.mode == "F" or grey.min() < 0 or grey.max() > 65535:
      raise ValueError("save it with 8 or 16 bits per channel.")
    if 0 < grey.max() < 4096:
      raise ValueError("nearly black: scale values of 12 bits to 16 bits.")
    image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
  rgb = image.convert("RGB")
  return np.array(rgb.resize((size, size), Image.Resampling.BICUBIC))


def main(paths: list[str]) -> int:
  """Print score and label of each image; return the exit status."""
  if not paths or paths[0].startswith("-"):
    sys.exit(__doc__)
  side = json.loads((FOLDER / "detector.json").read_text(encoding="utf-8"))
  session = onnxruntime.InferenceSession(str(FOLDER / side["file"]))
  status = 0
  for given in map(pathlib.Path, paths):
    found = sorted(given.iterdir()) if given.is_dir() else [given]
    if not found:
      print(f"error: {given}: the folder is empty", file=sys.stderr)
      status = 1
    for path in found:
      try:
        image = read(path, side["preprocessing"]["resize"][0])
      except (OSError, ValueError) as error:
        print(f"error: {path}: {error}", file=sys.stderr)
        status = 1
        continue
      out = session.run(None, {"image": image[None]})
      scores, maps = map(np.asarray, out)  # (1,), (1, s, s)
      limit = side["threshold"]["image_score"]
      label = "anomalous" if scores[0] >= limit else "normal"
      print(f"{scores[0]:.6f} {label} {path}")
  return status


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))

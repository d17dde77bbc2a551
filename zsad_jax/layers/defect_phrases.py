"""Phrases for the anomalies of each category, of PromptAD's code.

They name types of anomalies that occur in the test images of MVTec AD and VisA,
in the spelling of the code, trailing blanks and repetitions included.
"""

from collections.abc import Sequence

GENERIC = (
  "damaged {}",
  "flawed {}",
  "abnormal {}",
  "imperfect {}",
  "blemished {}",
  "{} with flaw",
  "{} with defect",
  "{} with damage",
)
# Names in prompts that are no category names with blanks instead of "_".
_NAMES = {
  "macaroni1": "macaroni",
  "macaroni2": "macaroni",
  **{f"pcb{i}": "printed circuit board" for i in range(1, 5)},
  "chewinggum": "chewing gum",
}
_MACARONI = (
  "color spot",
  "small chip around edge",
  "small scratches",
  "breakage",
  "cracks",
)
_PCB = ("bent", "scratch", "missing", "melt")
# An entry x without "{}" is "{} with x".
_OWN: dict[str, Sequence[str]] = {
  "bottle": ("large breakage", "small breakage", "contamination"),
  "toothbrush": ("defect", "anomaly"),
  "carpet": (
    "hole",
    "color stain",
    "metal contamination",
    "thread residue",
    "thread",
    "cut",
  ),
  "hazelnut": ("crack", "cut", "hole", "print"),
  "leather": ("color stain", "cut", "fold", "glue", "poke"),
  "cable": ("bent wire", "missing part", "missing wire", "cut", "poke"),
  "capsule": (
    "crack",
    "faulty imprint",
    "poke",
    "scratch",
    "{} squeezed with compression",
  ),
  "grid": (
    "breakage",
    "thread residue",
    "thread",
    "metal contamination",
    "glue",
    "a bent shape",
  ),
  "pill": (
    "color stain",
    "contamination",
    "crack",
    "faulty imprint",
    "scratch",
    "abnormal type",
  ),
  "transistor": ("bent lead", "cut lead", "damage", "misplaced transistor"),
  "metal_nut": (
    "a bent shape ",
    "color stain",
    "a flipped orientation",
    "scratch",
  ),
  "screw": ("manipulated front", "scratch neck", "scratch head"),
  "zipper": (
    "broken teeth",
    "fabric border",
    "defect fabric",
    "broken fabric",
    "split teeth",
    "squeezed teeth",
  ),
  "tile": ("crack", "glue strip", "gray stroke", "oil", "rough surface"),
  "wood": ("color stain", "hole", "scratch", "liquid"),
  "candle": (
    "melded wax",
    "foreign particals",
    "extra wax",
    "chunk of wax missing",
    "weird candle wick",
    "damaged corner of packaging",
    "different colour spot",
  ),
  "capsules": ("scratch", "discolor", "misshape", "leak", "bubble"),
  "cashew": (
    "breakage",
    "small scratches",
    "burnt",
    "stuck together",
    "spot",
  ),
  "chewinggum": (
    "corner missing",
    "scratches",
    "chunk of gum missing",
    "colour spot",
    "cracks",
  ),
  "fryum": (
    "breakage",
    "scratches",
    "burnt",
    "colour spot",
    "fryum stuck together",
    "colour spot",
  ),
  "macaroni1": _MACARONI,
  "macaroni2": _MACARONI,
  "pcb1": _PCB,
  "pcb2": _PCB,
  "pcb3": _PCB,
  "pcb4": (
    "scratch",
    "extra",
    "missing",
    "wrong place",
    "damage",
    "burnt",
    "dirt",
  ),
  "pipe_fryum": (
    "breakage",
    "small scratches",
    "burnt",
    "stuck together",
    "colour spot",
    "cracks",
  ),
}


def name_in_prompts(category: str) -> str:
  """Return the name of a category in prompts, such as "metal nut"."""
  return _NAMES.get(category, category.replace("_", " "))


def phrases(category: str) -> list[str]:
  """Return phrases for an anomalous object, such as "damaged metal nut".

  Args:
    category: name as its data set spells it; one that is not of MVTec AD or
      VisA has the generic phrases alone.
  """
  own = _OWN.get(category.replace(" ", "_"), ())
  states = [*GENERIC, *(x if "{}" in x else f"{{}} with {x}" for x in own)]
  return [state.format(name_in_prompts(category)) for state in states]

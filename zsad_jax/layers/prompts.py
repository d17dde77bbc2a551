"""Fixed text prompts for the normal and the anomalous state."""

# Authors' code, method/adaclip.py: a part of WinCLIP's list.
_ADACLIP_NORMAL = (
  "{}",
  "flawless {}",
  "perfect {}",
  "unblemished {}",
  "{} without flaw",
  "{} without defect",
  "{} without damage",
)
_ADACLIP_ANOMALOUS = (
  "damaged {}",
  "broken {}",
  "{} with flaw",
  "{} with defect",
  "{} with damage",
)
_ADACLIP_TEMPLATES = (
  "a bad photo of a {}.",
  "a low resolution photo of the {}.",
  "a bad photo of the {}.",
  "a cropped photo of the {}.",
)
# By state, as everywhere: normal, anomalous.
STATES = (_ADACLIP_NORMAL, _ADACLIP_ANOMALOUS)
ADACLIP_NUM_NORMAL_PROMPTS = len(_ADACLIP_NORMAL) * len(_ADACLIP_TEMPLATES)


def fill_templates(
  name: str, states: tuple[str, ...], templates: tuple[str, ...]
) -> list[str]:
  """Return template(state(name)) for all pairs, state-major.

  Args:
    name: of the object.
    states: phrases with one "{}", for the name.
    templates: prompts with one "{}", for the phrase.
  """
  return [
    template.format(state.format(name))
    for state in states
    for template in templates
  ]


def adaclip(class_name: str) -> tuple[list[str], list[str]]:
  """Return AdaCLIP's 28 normal and 20 anomalous prompts for a class.

  In the class name "-" becomes a space and "_" is kept.
  """
  name = class_name.replace("-", " ")
  return (
    fill_templates(name, _ADACLIP_NORMAL, _ADACLIP_TEMPLATES),
    fill_templates(name, _ADACLIP_ANOMALOUS, _ADACLIP_TEMPLATES),
  )


# Authors' code of AdaptCLIP: another selection of WinCLIP's templates. One of
# them occurs twice, which gives it twice the weight in the mean.
_WINCLIP_ANOMALOUS = (
  "damaged {}",
  "{} with flaw",
  "{} with defect",
  "{} with damage",
)
_ADAPTCLIP_TEMPLATES = (
  "a cropped photo of the {}.",
  "a close-up photo of a {}.",
  "a close-up photo of the {}.",
  "a bright photo of a {}.",
  "a bright photo of the {}.",
  "a dark photo of the {}.",
  "a dark photo of a {}.",
  "a jpeg corrupted photo of the {}.",
  "a jpeg corrupted photo of the {}.",
  "a blurry photo of the {}.",
  "a blurry photo of a {}.",
  "a photo of a {}.",
  "a photo of the {}.",
  "a photo of a small {}.",
  "a photo of the small {}.",
  "a photo of a large {}.",
  "a photo of the large {}.",
  "a photo of the {} for visual inspection.",
  "a photo of a {} for visual inspection.",
  "a photo of the {} for anomaly detection.",
  "a photo of a {} for anomaly detection.",
)


def adaptclip() -> tuple[list[str], list[str]]:
  """Return AdaptCLIP's 147 normal and 84 anomalous prompts for an object."""
  return (
    fill_templates("object", _ADACLIP_NORMAL, _ADAPTCLIP_TEMPLATES),
    fill_templates("object", _WINCLIP_ANOMALOUS, _ADAPTCLIP_TEMPLATES),
  )


# APRIL-GAN's 35 templates.
_PHOTO_ADJECTIVES = (
  "bad",
  "low resolution",
  "cropped",
  "bright",
  "dark",
  "close-up",
  "black and white",
  "jpeg corrupted",
  "blurry",
  "good",
)
PHOTOS = (
  *(
    f"a {a} photo of {the} {{}}."
    for a in _PHOTO_ADJECTIVES
    for the in ("a", "the")
  ),
  *(
    f"a photo of {the} {size}{{}}."
    for size in ("", "large ", "small ", "cool ")
    for the in ("a", "the")
  ),
  "a photo of my {}.",
  "a photo of one {}.",
  *(f"there is {the} {{}} in the scene." for the in ("a", "the")),
  *(f"this is {the} {{}} in the scene." for the in ("a", "the", "one")),
)

# WinCLIP's 22 templates.
_WINCLIP_TEMPLATES = tuple(
  f"a {photo}."
  for pattern in (
    "cropped photo of {the} {{}}",
    "close-up photo of {the} {{}}",
    "bright photo of {the} {{}}",
    "dark photo of {the} {{}}",
    "jpeg corrupted photo of {the} {{}}",
    "blurry photo of {the} {{}}",
    "photo of {the} {{}}",
    "photo of {the} small {{}}",
    "photo of {the} large {{}}",
    "photo of {the} {{}} for visual inspection",
    "photo of {the} {{}} for anomaly detection",
  )
  for photo in (pattern.format(the="a"), pattern.format(the="the"))
)


def winclip(name: str) -> tuple[list[str], list[str]]:
  """Return WinCLIP's 154 normal and 88 anomalous prompts for a class."""
  return (
    fill_templates(name, _ADACLIP_NORMAL, _WINCLIP_TEMPLATES),
    fill_templates(name, _WINCLIP_ANOMALOUS, _WINCLIP_TEMPLATES),
  )

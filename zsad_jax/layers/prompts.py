"""Fixed text prompts for the normal and the anomalous state.

States are phrases with one "{}" for the name of an object, templates are
prompts with one "{}" for such a phrase. Lists are in the order of the authors'
code: the mean of an ensemble does not depend on it, apart from rounding.
"""

from collections.abc import Sequence

# WinCLIP's states (Jeong et al., CVPR 2023, arXiv:2303.14814).
NORMAL_STATES = (
  "{}",
  "flawless {}",
  "perfect {}",
  "unblemished {}",
  "{} without flaw",
  "{} without defect",
  "{} without damage",
)
WINCLIP_ANOMALOUS_STATES = (
  "damaged {}",
  "{} with flaw",
  "{} with defect",
  "{} with damage",
)
# APRIL-GAN and AdaCLIP add a state.
ANOMALOUS_STATES = (
  "damaged {}",
  "broken {}",
  "{} with flaw",
  "{} with defect",
  "{} with damage",
)
# By state, as everywhere: normal, anomalous.
STATES = (NORMAL_STATES, ANOMALOUS_STATES)
WINCLIP_STATES = (NORMAL_STATES, WINCLIP_ANOMALOUS_STATES)


def fill_templates(
  name: str,
  states: Sequence[str],
  templates: Sequence[str],
  *,
  template_major: bool = False,
) -> list[str]:
  """Return template(state(name)) for all pairs.

  Args:
    name: of the object.
    states: phrases with one "{}", for the name.
    templates: prompts with one "{}", for the phrase.
    template_major: all states of the first template come first, instead of
      all templates of the first state.
  """
  phrases = [state.format(name) for state in states]
  if template_major:
    return [t.format(phrase) for t in templates for phrase in phrases]
  return [t.format(phrase) for phrase in phrases for t in templates]


def ensemble(
  name: str,
  states: Sequence[Sequence[str]],
  templates: Sequence[str],
  *,
  template_major: bool = False,
) -> tuple[list[str], ...]:
  """Return all prompts of each state for a class, see `fill_templates`."""
  return tuple(
    fill_templates(name, phrases, templates, template_major=template_major)
    for phrases in states
  )


# Authors' code of AdaCLIP, method/adaclip.py: four of APRIL-GAN's templates.
_ADACLIP_TEMPLATES = (
  "a bad photo of a {}.",
  "a low resolution photo of the {}.",
  "a bad photo of the {}.",
  "a cropped photo of the {}.",
)
ADACLIP_NUM_NORMAL_PROMPTS = len(NORMAL_STATES) * len(_ADACLIP_TEMPLATES)


def adaclip(class_name: str) -> tuple[list[str], ...]:
  """Return AdaCLIP's 28 normal and 20 anomalous prompts for a class.

  In the class name "-" becomes a space and "_" is kept.
  """
  return ensemble(class_name.replace("-", " "), STATES, _ADACLIP_TEMPLATES)


# Of WinCLIP's templates, anomalib, AdaptCLIP and the WinCLIP in AnomalyCLIP's
# code have 21: one is missing, and one occurs twice, which gives it twice the
# weight in the mean.
WINCLIP_TEMPLATES_21 = (
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


def adaptclip() -> tuple[list[str], ...]:
  """Return AdaptCLIP's 147 normal and 84 anomalous prompts for an object."""
  return ensemble("object", WINCLIP_STATES, WINCLIP_TEMPLATES_21)


_WINCLIP_PATTERNS = (
  "a cropped {photo} of {the} {{}}",
  "a close-up {photo} of {the} {{}}",
  "a bright {photo} of {the} {{}}",
  "a dark {photo} of {the} {{}}",
  "a jpeg corrupted {photo} of {the} {{}}",
  "a blurry {photo} of {the} {{}}",
  "{a} {photo} of {the} {{}}",
  "{a} {photo} of {the} small {{}}",
  "{a} {photo} of {the} large {{}}",
  "{a} {photo} of {the} {{}} for visual inspection",
  "{a} {photo} of {the} {{}} for anomaly detection",
)


def _winclip_templates(the_first, end, photo="photo"):
  """Return both articles of each pattern; "the" first where the flag is 1."""
  articles = lambda flag: ("the", "a") if flag == "1" else ("a", "the")
  a = "an" if photo[0] in "aeiou" else "a"
  return tuple(
    pattern.format(a=a, photo=photo, the=article) + end
    for pattern, flag in zip(_WINCLIP_PATTERNS, the_first, strict=True)
    for article in articles(flag)
  )


# WinCLIP's 22 templates; the order of the code at mala-lab/WinCLIP, and order
# and wording of the code at caoyunkang/WinClip, which has no full stops.
WINCLIP_TEMPLATES_22 = _winclip_templates("00000000000", ".")
WINCLIP_TEMPLATES_MALA_LAB = _winclip_templates("10000110000", ".")
WINCLIP_TEMPLATES_CAOYUNKANG = _winclip_templates("10010100011", "")


# AnoVL's states (Deng et al., 2023, arXiv:2308.15939), and the words for the
# domain of objects and of textures that take the place of "photo".
ANOVL_STATES = (
  ("normal {}", *NORMAL_STATES[1:]),
  (
    "damaged {}",
    "abnormal {}",
    "imperfect {}",
    "blemished {}",
    *WINCLIP_ANOMALOUS_STATES[1:],
  ),
)
_ANOVL_DOMAINS = {
  "object": ("industrial photo", "industrial image", "manufacturing image"),
  "texture": ("industrial photo", "textural photo", "surface picture"),
}
ANOVL_TEMPLATES = {
  kind: sum(
    (_winclip_templates("10010100011", "", photo) for photo in domains), ()
  )
  for kind, domains in _ANOVL_DOMAINS.items()
}


def winclip(name: str) -> tuple[list[str], ...]:
  """Return WinCLIP's 154 normal and 88 anomalous prompts for a class."""
  return ensemble(name, WINCLIP_STATES, WINCLIP_TEMPLATES_22)


# Natural images, of which InCTRL's code has one prompt per state.
_NATURAL = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog")
_NATURAL += ("horse", "ship", "truck", "animal")


def inctrl(name: str) -> Sequence[list[str]]:
  """Return InCTRL's prompts for a class: WinCLIP's, or one per state."""
  if name in _NATURAL:
    end = f"{name} for anomaly detection."
    return [f"a photo of {end}"], [f"a photo without {end}"]
  templates = WINCLIP_TEMPLATES_MALA_LAB
  return ensemble(name.replace("_", " "), WINCLIP_STATES, templates)


# APRIL-GAN's 35 templates (Chen et al., VAND challenge at CVPR 2023).
APRIL_GAN_TEMPLATES = (
  "a bad photo of a {}.",
  "a low resolution photo of the {}.",
  "a bad photo of the {}.",
  "a cropped photo of the {}.",
  "a bright photo of a {}.",
  "a dark photo of the {}.",
  "a photo of my {}.",
  "a photo of the cool {}.",
  "a close-up photo of a {}.",
  "a black and white photo of the {}.",
  "a bright photo of the {}.",
  "a cropped photo of a {}.",
  "a jpeg corrupted photo of a {}.",
  "a blurry photo of the {}.",
  "a photo of the {}.",
  "a good photo of the {}.",
  "a photo of one {}.",
  "a close-up photo of the {}.",
  "a photo of a {}.",
  "a low resolution photo of a {}.",
  "a photo of a large {}.",
  "a blurry photo of a {}.",
  "a jpeg corrupted photo of the {}.",
  "a good photo of a {}.",
  "a photo of the small {}.",
  "a photo of the large {}.",
  "a black and white photo of a {}.",
  "a dark photo of a {}.",
  "a photo of a cool {}.",
  "a photo of a small {}.",
  "there is a {} in the scene.",
  "there is the {} in the scene.",
  "this is a {} in the scene.",
  "this is the {} in the scene.",
  "this is one {} in the scene.",
)


def april_gan(name: str) -> tuple[list[str], ...]:
  """Return APRIL-GAN's 245 normal and 175 anomalous prompts for a class."""
  return ensemble(name, STATES, APRIL_GAN_TEMPLATES)


# The same templates, in the order that pretraining draws from.
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

# The 80 templates for ImageNet published with CLIP (Radford et al., 2021), by
# OpenAI, MIT license.
IMAGENET_TEMPLATES = (
  "a bad photo of a {}.",
  "a photo of many {}.",
  "a sculpture of a {}.",
  "a photo of the hard to see {}.",
  "a low resolution photo of the {}.",
  "a rendering of a {}.",
  "graffiti of a {}.",
  "a bad photo of the {}.",
  "a cropped photo of the {}.",
  "a tattoo of a {}.",
  "the embroidered {}.",
  "a photo of a hard to see {}.",
  "a bright photo of a {}.",
  "a photo of a clean {}.",
  "a photo of a dirty {}.",
  "a dark photo of the {}.",
  "a drawing of a {}.",
  "a photo of my {}.",
  "the plastic {}.",
  "a photo of the cool {}.",
  "a close-up photo of a {}.",
  "a black and white photo of the {}.",
  "a painting of the {}.",
  "a painting of a {}.",
  "a pixelated photo of the {}.",
  "a sculpture of the {}.",
  "a bright photo of the {}.",
  "a cropped photo of a {}.",
  "a plastic {}.",
  "a photo of the dirty {}.",
  "a jpeg corrupted photo of a {}.",
  "a blurry photo of the {}.",
  "a photo of the {}.",
  "a good photo of the {}.",
  "a rendering of the {}.",
  "a {} in a video game.",
  "a photo of one {}.",
  "a doodle of a {}.",
  "a close-up photo of the {}.",
  "a photo of a {}.",
  "the origami {}.",
  "the {} in a video game.",
  "a sketch of a {}.",
  "a doodle of the {}.",
  "a origami {}.",
  "a low resolution photo of a {}.",
  "the toy {}.",
  "a rendition of the {}.",
  "a photo of the clean {}.",
  "a photo of a large {}.",
  "a rendition of a {}.",
  "a photo of a nice {}.",
  "a photo of a weird {}.",
  "a blurry photo of a {}.",
  "a cartoon {}.",
  "art of a {}.",
  "a sketch of the {}.",
  "a embroidered {}.",
  "a pixelated photo of a {}.",
  "itap of the {}.",
  "a jpeg corrupted photo of the {}.",
  "a good photo of a {}.",
  "a plushie {}.",
  "a photo of the nice {}.",
  "a photo of the small {}.",
  "a photo of the weird {}.",
  "the cartoon {}.",
  "art of the {}.",
  "a drawing of the {}.",
  "a photo of the large {}.",
  "a black and white photo of a {}.",
  "the plushie {}.",
  "a dark photo of a {}.",
  "itap of a {}.",
  "graffiti of the {}.",
  "a toy {}.",
  "itap of my {}.",
  "a photo of a cool {}.",
  "a photo of a small {}.",
  "a tattoo of the {}.",
)


def clip_ac(name: str) -> tuple[list[str], ...]:
  """Return the 80 prompts for a normal and for an anomalous object.

  The templates keep their articles: "a photo of a anomalous ...".
  """
  return ensemble(name, (("normal {}",), ("anomalous {}",)), IMAGENET_TEMPLATES)

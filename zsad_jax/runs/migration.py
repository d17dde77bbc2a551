"""Names and values of configuration fields in older versions."""

from collections.abc import Mapping
from typing import Any

# Section -> old name -> present name; "" is the configuration itself.
RENAMED = {
  "method": {
    "taps": "feature_layers",
    "tap": "feature_layer",
    "alias_tap": "alias_feature_layer",
    "act": "activation",
  },
  "memory": {"taps": "feature_layers"},
  "features": {"place": "storage"},
  "objective": {"taps": "feature_layers"},
}
# Section -> fields that older versions do not have, with their behavior.
ADDED: Mapping[str, Mapping[str, Any]] = {
  "": {
    "mosaic_images": "all",
    "augmentation": "none",
    "batch_scale": 1,
    "l2_weight_decay": 0.0,
    "schedule": {
      "name": "constant",
      "warmup_epochs": 0,
      "warmup_learning_rate": 0.0,
    },
    "param_groups": {},
    "text_backbone": {"name": "", "path": ""},
  },
  "backbone": {"attention": "exact"},
  "memory": {
    "score": "pixels",
    "zero_shot_weight": 0.5,
    "coreset": None,
    "coreset_width": None,
  },
}


def upgrade(document: Mapping[str, Any]) -> dict[str, Any]:
  """Return a configuration with the present fields of its sections.

  Args:
    document: content of a `config.json`, of any version.
  """
  result = dict(document)
  for section, names in RENAMED.items():
    if isinstance(result.get(section), Mapping):
      result[section] = {
        names.get(key, key): value for key, value in result[section].items()
      }
  for section, fields in ADDED.items():
    if not section and "method_name" in result:  # Pretraining has no method.
      result = {**fields, **result}
    elif isinstance(result.get(section), Mapping):
      result[section] = {**fields, **result[section]}
  return result

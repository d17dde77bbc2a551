"""Names and shapes in the authors' checkpoints, independent of the package."""

import re

import numpy as np

BUFFER = re.compile(r"\.token\w+_(pos|neg)$")


def _linear(name, c_in, c_out):
  return {f"{name}.weight": (c_out, c_in), f"{name}.bias": (c_out,)}


def _batch_norm(name, c):
  leaves = ("weight", "bias", "running_mean", "running_var")
  shapes = {f"{name}.{leaf}": (c,) for leaf in leaves}
  return shapes | {f"{name}.num_batches_tracked": ()}


def _prompt_buffers(c, *, pos, neg, k=1):
  """Return buffers of prompts with `pos` and `neg` vectors, k anomalous."""
  shapes = {}
  for state, n, m in (("pos", 1, pos), ("neg", k, neg)):
    shapes[f"token_prefix_{state}"] = (1, n, 1, c)
    shapes[f"token_suffix_{state}"] = (1, n, 76 - m, c)
    shapes[f"tokenized_prompts_{state}"] = (1, n, 77)
  return shapes


def _deep(c, method):
  shapes = {}
  for k in range(method.deep_depth - 1):
    shapes[f"compound_prompts_text.{k}"] = (method.deep_length, c)
    shapes |= _linear(f"compound_prompt_projections.{k}", c, 896)
  return shapes


def _adaclip(method, sizes):
  text, vision, d = sizes.text_width, sizes.vision_width, sizes.embed_dim
  m, shapes = method.prompt_length, {}
  for j in range(method.prompt_depth):
    shapes[f"text_prompter.static_prompts.{j}"] = (m, text)
    shapes[f"visual_prompter.static_prompts.{j}"] = (m, vision)
  for i in range(len(method.feature_layers)):
    shapes |= _linear(f"patch_token_layer.head.{i}", vision, d)
  shapes |= _linear("cls_token_layer.head.0", d, d)
  for i in range(m):
    shapes |= _linear(f"dynamic_visual_prompt_generator.head.{i}", d, vision)
    shapes |= _linear(f"dynamic_text_prompt_generator.head.{i}", d, text)
  return {f"clip_model.{name}": shape for name, shape in shapes.items()}


def _anomalyclip(method, sizes):
  c, m = sizes.text_width, method.context_length
  shapes = {"ctx_pos": (1, 1, m, c), "ctx_neg": (1, 1, m, c)}
  shapes |= _deep(c, method) | _prompt_buffers(c, pos=m, neg=m)
  return {f"prompt_learner.{name}": shape for name, shape in shapes.items()}


def _faprompt(method, sizes):
  c, k = sizes.text_width, method.num_prompts
  normal, anomalous = method.normal_length, method.abnormal_length
  c_in = method.num_patches * sizes.embed_dim
  shapes = {
    "ctx_pos": (1, 1, normal, c),
    "ctx_neg": (1, k, anomalous, c),
    **_linear("patch_meta_net.linear1", c_in, c_in // 16),
    **_linear("patch_meta_net.linear2", c_in // 16, c),
    **_deep(c, method),
    **_prompt_buffers(c, pos=normal, neg=normal + anomalous, k=k),
  }
  return {f"prompt_learner.{name}": shape for name, shape in shapes.items()}


def _adaptclip(method, sizes):
  c, d, m = sizes.text_width, sizes.embed_dim, method.context_length
  (wide, narrow), shapes = method.head_widths, {}
  for name, shape in {
    "ctx_pos": (1, 1, m, c),
    "ctx_neg": (1, 1, m, c),
    **_prompt_buffers(c, pos=m, neg=m),
  }.items():
    shapes[f"textual_learner.{name}"] = shape
  for adapter in ("local_adater", "global_adapter"):
    fc = f"visual_learner.{adapter}.fc"
    shapes[f"{fc}.0.weight"] = (d // 4, d)
    shapes |= _batch_norm(f"{fc}.1", d // 4)
    shapes[f"{fc}.3.weight"] = (d, d // 4)
  for i in range(len(method.feature_layers)):
    shapes |= _batch_norm(f"pq_learner.sharebn.{i}", d)
    head = f"pq_learner.local_adapter.{i}"
    shapes[f"{head}.0.weight"] = (wide, d, 3, 3)
    shapes |= _batch_norm(f"{head}.1", wide)
    shapes[f"{head}.3.weight"] = (wide, wide, 2, 2)
    shapes[f"{head}.3.bias"] = (wide,)
    shapes[f"{head}.4.weight"] = (narrow, wide, 3, 3)
    shapes |= _batch_norm(f"{head}.5", narrow)
    shapes[f"{head}.7.weight"] = (narrow, narrow, 2, 2)
    shapes[f"{head}.7.bias"] = (narrow,)
    shapes[f"{head}.8.weight"] = (2, narrow, 1, 1)
    shapes[f"{head}.8.bias"] = (2,)
    head = f"pq_learner.global_adapter.{i}"
    shapes[f"{head}.0.weight"] = (wide, d)
    shapes |= _batch_norm(f"{head}.1", wide)
    shapes[f"{head}.3.weight"] = (narrow, wide)
    shapes |= _batch_norm(f"{head}.4", narrow)
    shapes[f"{head}.6.weight"] = (2, narrow)
  return shapes


def _april_gan(method, sizes):
  shapes = {}
  for i in range(len(method.feature_layers)):
    layer = f"trainable_linearlayer.fc.{i}"
    shapes |= _linear(layer, sizes.vision_width, sizes.embed_dim)
  return shapes


def _vcpclip(method, sizes):
  c, d, w = sizes.vision_width, sizes.embed_dim, sizes.text_width
  r, n = method.num_class_vectors, method.deep_length
  shapes = {
    **_april_gan(method, sizes),
    "New_Lan_Embed.prompt_query": (1, r, w),
    "New_Lan_Embed.prompt_linear1.fc.weight": (r, 1, 3),
    "New_Lan_Embed.prompt_linear1.fc.bias": (r,),
    "New_Lan_Embed.prompt_temp": (),
    "Zero_try.prompt_temp_l1": (),
  }
  layers = {"q_proj_pre": d, "k_proj_pre_1": c, "v_proj_pre_1": c}
  for name, c_in in (layers | {"proj_post_t": c}).items():
    shapes[f"Zero_try.{name}.weight"] = (c, c_in, 1)
    shapes[f"Zero_try.{name}.bias"] = (c,)
  return shapes | {
    "prompt_embeddings": (1, n, w),
    "deep_prompt_embeddings": (sizes.text_layers - 1, n, w),
    **_linear("prompt_proj", w, w),
    "prompt_norm.weight": (w,),
    "prompt_norm.bias": (w,),
    "prompt_text_projection": (w, d),
  }


AUTHORS = {
  "adaclip": _adaclip,
  "anomalyclip": _anomalyclip,
  "faprompt": _faprompt,
  "adaptclip": _adaptclip,
  "april_gan": _april_gan,
  "vcpclip": _vcpclip,
}


def random_state(name, method, sizes, *, half=False):
  """Return random tensors of a file; shared heads are the same arrays."""
  rng, state = np.random.default_rng(0), {}
  for key, shape in AUTHORS[name](method, sizes).items():
    first = re.sub(r"(pq_learner\.(local|global)_adapter)\.\d", r"\1.0", key)
    if first in state:
      state[key] = state[first]
    elif "tokenized" in key:
      state[key] = rng.integers(0, 49408, shape, np.int32)
    elif "num_batches" in key:
      state[key] = np.array(rng.integers(1, 9999), np.int64)
    else:
      dtype = np.float16 if half and BUFFER.search(key) else np.float32
      state[key] = rng.normal(size=shape).astype(dtype)
  return state


def nest(state, name):
  """Return the nested dicts of a file; AdaCLIP's and a part of VCP-CLIP's
  are flat.
  """
  if name == "adaclip":
    return state
  nested = {}
  for key, x in state.items():
    group, _, rest = key.partition(".")
    if name == "vcpclip" and key.startswith(("prompt_", "deep_prompt_")):
      nested[key] = x
    else:
      nested.setdefault(group, {})[rest] = x
  return nested

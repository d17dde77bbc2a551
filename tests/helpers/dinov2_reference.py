"""Reference tensors of DINOv2, made by transformers; needs torch.

python -m tests.helpers.dinov2_reference

writes tests/goldens/dinov2.npz and its entry in manifest.json.
"""

import json
import pathlib

import numpy as np

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
FILE = "dinov2.npz"
SEED = 7
# Models of transformers by name of the case; the position table is 4 x 4.
_SIZES = dict(
  hidden_size=64,
  num_hidden_layers=2,
  num_attention_heads=2,
  image_size=28,
  patch_size=7,
)
CONFIGS = {
  "plain": dict(model_type="dinov2", **_SIZES),
  "registers": dict(
    model_type="dinov2_with_registers", num_register_tokens=4, **_SIZES
  ),
  "gated": dict(model_type="dinov2", use_swiglu_ffn=True, **_SIZES),
}
# Height and width of the images: native, larger, smaller, not square.
IMAGES = {"native": (28, 28), "large": (42, 42), "small": (21, 21)}
IMAGES |= {"wide": (28, 49)}


def make(fields, *, seed=SEED):
  """Return a model of transformers with random weights, in float32.

  The weights are float16-exact.

  Args:
    fields: of config.json.
    seed: of the weights.
  """
  import torch
  import transformers

  names = {"dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters"}
  start = names[fields["model_type"]]
  config = getattr(transformers, f"{start}Config").from_dict(fields)
  model = getattr(transformers, f"{start}Model")(config).eval()
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, x in model.named_parameters():
      noise = torch.randn(x.shape, generator=generator)
      fan_in = x[0].numel() if x.dim() > 1 else 1
      if "norm" in name or "lambda1" in name:
        value = float(name.endswith(("weight", "lambda1"))) + 0.2 * noise
      elif "embeddings" in name and "projection" not in name:
        value = 0.5 * noise
      else:
        value = noise * (fan_in**-0.5 if x.dim() > 1 else 0.1)
      x.copy_(value.half().float())
  return model


def published_names(model, folder):
  """Save a model as its authors publish it; return the arrays by name."""
  from safetensors import numpy as safetensors

  model.save_pretrained(folder)
  return safetensors.load_file(pathlib.Path(folder) / "model.safetensors")


def outputs(model, pixels):
  """Return the hidden states and outputs for uint8 images (b, 3, h, w)."""
  import torch

  dtype = next(model.parameters()).dtype
  stat = lambda x: torch.tensor(x, dtype=dtype)[:, None, None]
  x = torch.from_numpy(pixels).to(dtype) / 255
  mean, std = stat([0.485, 0.456, 0.406]), stat([0.229, 0.224, 0.225])
  with torch.no_grad():
    out = model((x - mean) / std, output_hidden_states=True)
  drop = getattr(model.config, "num_register_tokens", 0)
  tokens = lambda x: torch.cat([x[:, :1], x[:, 1 + drop :]], dim=1).numpy()
  found = {
    f"block{i:02d}": tokens(x) for i, x in enumerate(out.hidden_states) if i
  }
  found["last"] = tokens(out.last_hidden_state)
  found["pooled"] = out.pooler_output.numpy()
  return found


def main():
  """Write the arrays and their entry in the manifest."""
  import tempfile

  import torch
  import transformers

  rng = np.random.default_rng(SEED)
  arrays, roles = {}, {}
  for name, size in IMAGES.items():
    arrays[f"image_u8/{name}"] = rng.integers(0, 256, (2, 3, *size), np.uint8)
  for case, fields in CONFIGS.items():
    model = make(fields)
    with tempfile.TemporaryDirectory() as folder:
      for name, x in published_names(model, folder).items():
        arrays[f"{case}/w/{name}"] = x.astype(np.float16)
    for image in IMAGES:
      pixels = arrays[f"image_u8/{image}"]
      found = outputs(model.float(), pixels)
      exact = outputs(model.double(), pixels)
      for name, x in found.items():
        key = f"{case}/{image}/{name}"
        error = float(np.abs(x - exact[name]).max())
        atol = max(50 * error, 2e-5 * float(np.abs(x).max()))
        arrays[key] = x
        roles[key] = {"role": "expected", "f64": error, "atol": atol}
  np.savez_compressed(GOLDENS / FILE, **arrays)
  described = {
    name: {"shape": [*x.shape], **roles.get(name, {"role": "input"})}
    for name, x in arrays.items()
  }
  path = GOLDENS / "manifest.json"
  manifest = json.loads(path.read_text(encoding="utf-8"))
  manifest["files"][FILE] = {
    "method": "dinov2",
    "repo": f"transformers {transformers.__version__}, torch "
    f"{torch.__version__}",
    "functions": "Dinov2Model, Dinov2WithRegistersModel",
    "config": CONFIGS,
    "note": "blockNN: hidden states without registers, class token first; "
    "last: after the last LayerNorm; pooled: its class token",
    "bytes": (GOLDENS / FILE).stat().st_size,
    "arrays": described,
  }
  text = json.dumps(manifest, indent=0, ensure_ascii=False)
  path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
  main()

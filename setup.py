"""Package definition of zsad_jax. Developers use `pip install -e .`."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(
  r'__version__ = "(.+)"', (HERE / "zsad_jax/__init__.py").read_text()
)[1]

# JAX 0.11 and later need Python 3.12; pip picks what fits.
JAX = "jax{}>=0.10,<0.13"
CORE = [
  JAX.format(""),
  "flax>=0.12",
  "optax>=0.2.8",
  "orbax-checkpoint>=0.12,<1",
  "transformers>=5",
  "numpy>=2.1",
  "scipy>=1.14",
  "scikit-learn>=1.5",
  "ml_collections>=1.0",
  "absl-py>=2.1",
  "etils[epath]>=1.9",
  "pillow>=11",
  "jaxtyping>=0.3",
  "safetensors>=0.5",
  "huggingface_hub>=1",
  "ftfy>=6",
  "regex",
  # Only the data pipelines import TensorFlow; they never use a GPU.
  "tensorflow>=2.20; platform_machine != 'x86_64' or sys_platform != 'linux'",
  "tensorflow-cpu>=2.20; platform_machine == 'x86_64' and sys_platform == 'linux'",  # noqa: E501
  "tensorflow-datasets>=4.9",
  "importlib_resources",  # TensorFlow Datasets imports it undeclared.
]

# Of `zsad serve`; h11 is the server's parser of HTTP.
SERVE = ["fastapi>=0.115", "uvicorn>=0.30", "h11>=0.16"]

# Of notebooks/ and their execution.
NOTEBOOKS = [
  "nbclient>=0.10",
  "ipykernel>=6",
  "matplotlib>=3.9",
  "scikit-image",
]

# Folders of the checkout that a wheel holds inside the package, see
# zsad_jax.runtime.environment.resource_folder.
RESOURCES = {
  "zsad_jax.configs": "configs",
  "zsad_jax.paper_results": "data/paper_results",
}

setup(
  name="zsad_jax",
  version=VERSION,
  description="CLIP-based zero- and few-shot anomaly detection in JAX/Flax",
  long_description=(HERE / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=[
    *find_packages(include=["zsad_jax", "zsad_jax.*"]),
    *RESOURCES,
  ],
  package_dir=RESOURCES,
  package_data={
    "zsad_jax": ["py.typed"],
    "zsad_jax.backbones.clip": ["*.gz", "*.md", "*.safetensors"],
    "zsad_jax.paper_results": ["*.csv", "*.md"],
  },
  entry_points={"console_scripts": ["zsad = zsad_jax.runtime.launcher:main"]},
  install_requires=CORE,
  extras_require={
    "cuda12": [JAX.format("[cuda12]")],
    "tpu": [JAX.format("[tpu]")],
    "gs": ["gcsfs"],
    "s3": ["s3fs"],
    "az": ["adlfs"],
    "elpv": ["elpv-dataset"],
    "heic": ["pillow-heif>=0.18"],
    "dicom": ["pydicom>=3"],
    "tensorboard": ["tensorboardX"],
    "onnx": ["onnx>=1.17", "onnxruntime>=1.20"],
    "serve": SERVE,
    "demo": ["gradio>=6", *SERVE],
    "docs": ["sphinx>=8", "myst-nb>=1.2", "sphinx-book-theme>=1.1"],
    "notebooks": NOTEBOOKS,
    "test": [
      *SERVE,
      "pytest>=8",
      "pytest-xdist>=3",
      "filelock",
      "hypothesis>=6",
      "beartype>=0.18",
      "pyright[nodejs]>=1.1.400",
      "ruff>=0.6",
    ],
  },
)

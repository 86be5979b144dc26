"""For tools that still run it; all that it says is in pyproject.toml."""

from setuptools import setup

setup()

"""Supports tools that still run setup.py. The configuration is in pyproject.toml."""

from setuptools import setup

setup()

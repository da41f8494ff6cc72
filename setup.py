"""For tools that still look for setup.py; the package is described in pyproject.toml."""

from setuptools import setup

setup()

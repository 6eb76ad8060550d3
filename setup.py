"""Builds what is written in C, where that can be; without it gates take a little longer."""

import sys

from setuptools import Extension, setup

native = Extension(
    "aigtool.inference.native",
    ["aigtool/inference/native.c"],
    # Not linked with OpenMP: symbols are those of PyTorch's, which is loaded before.
    extra_compile_args=["-O3", "-fopenmp"] if sys.platform == "linux" else [],
    optional=True,
)
setup(ext_modules=[native])

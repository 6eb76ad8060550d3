"""Builds what is written in C, where that can be; without it gates take a little longer."""

import os
import sys
import sysconfig

from setuptools import Extension, setup

compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or ""
# Of gcc alone: its OpenMP is the one that PyTorch brings along. It is not linked with: its symbols
# are found in PyTorch's, which is loaded before.
shares_work = sys.platform == "linux" and "clang" not in compiler
native = Extension(
    "aigtool.inference.native",
    ["aigtool/inference/native.c"],
    extra_compile_args=["-O3", "-fopenmp"] if shares_work else [],
    optional=True,
)
setup(ext_modules=[native])

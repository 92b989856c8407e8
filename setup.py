"""The second entry to the build, for tools without PEP 517: ``python setup.py bdist_wheel``.

pip uses pyproject.toml instead. Both run the same CMakeLists.txt; here the backends come from SBHAL_BACKENDS.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
VERSION = re.findall('^__version__ = "(.+)"', (ROOT / "spikingbrain_hal/__init__.py").read_text(), re.M)[0]
BACKENDS = os.environ.get("SBHAL_BACKENDS") or "cpu"


class CMakeBuild(build_ext):
    """Runs CMake once; it installs each backend's native module into that backend's folder."""

    def run(self) -> None:
        package = ROOT if self.inplace else Path(self.build_lib, "spikingbrain_hal").resolve()
        build = Path(self.build_temp).resolve()
        defines = {
            "CMAKE_BUILD_TYPE": "Release",
            "SBHAL_BACKENDS": BACKENDS,
            "SBHAL_INSTALL_DIR": package,
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
        }
        options = [f"-D{name}={value}" for name, value in defines.items()]
        configure = ["-S", ROOT, "-B", build, *options]
        for arguments in (configure, ["--build", build, "--parallel"], ["--install", build]):
            subprocess.run(["cmake", *map(str, arguments)], check=True)


setup(
    version=VERSION,
    packages=[
        *find_packages(include=["spikingbrain_hal*"]),
        *(f"spikingbrain_hal.{name}" for name in find_packages(include=["backends*"])),
    ],
    package_dir={"spikingbrain_hal.backends": "backends"},
    package_data={"": ["py.typed", "*.pyi", "vendor.h", "**/*.j2", "**/*.json"]},
    ext_modules=[Extension(f"spikingbrain_hal.backends.{b}._native", []) for b in BACKENDS.split(";")],
    cmdclass={"build_ext": CMakeBuild},
)

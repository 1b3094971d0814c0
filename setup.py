"""The native kernels are optional: where they cannot be built, the package runs on the reference kernels."""

from __future__ import annotations

import platform
import sys
import sysconfig

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


class OptionalBuildExt(build_ext):
    """Builds the kernels, or says in one line why the install goes on without them."""

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:
            self.skip(error)

    def build_extension(self, ext: object) -> None:
        try:
            super().build_extension(ext)  # type: ignore[arg-type]
        except Exception as error:
            self.skip(error)

    def copy_extensions_to_source(self) -> None:
        try:
            super().copy_extensions_to_source()
        except Exception as error:
            self.skip(error)

    def skip(self, error: Exception) -> None:
        self.extensions = []
        print(
            f"oram: native kernels were NOT built ({error}). They need a C compiler and OpenSSL's headers (Debian: gcc libssl-dev). "
            "Installing without them; `oram doctor` shows which kernels run.",
            file=sys.stderr,
        )


class Abi3Wheel(bdist_wheel):
    """Tags the wheel abi3: one build for every CPython from 3.11."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if platform.python_implementation() == "CPython" and not sysconfig.get_config_var("Py_GIL_DISABLED"):
            self.py_limited_api = "cp311"


setup(cffi_modules=["oram/kernels/build.py:ffi"], cmdclass={"build_ext": OptionalBuildExt, "bdist_wheel": Abi3Wheel})

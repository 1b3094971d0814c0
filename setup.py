"""The native kernels are optional: where they cannot be built, the package runs on the reference kernels."""

from __future__ import annotations

import platform
import sys
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


class OptionalBuildExt(build_ext):
    """Builds the kernels, or says in one line that the install goes on without them."""

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
        for extension in self.extensions:  # what an earlier build left is no part of this one
            Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
        self.extensions = self.distribution.ext_modules = []
        # The error itself is the whole command; what the compiler said about it stands above.
        print(
            f"oram: native kernels were NOT built ({type(error).__name__}): they need a C compiler, Python's and OpenSSL's headers "
            "(Debian: gcc python3-dev libssl-dev). `oram doctor` shows which kernels run.",
            file=sys.stderr,
        )


class Wheel(bdist_wheel):
    """Tags the wheel abi3, one build for every CPython from 3.11; or as pure Python where the kernels are not in it.

    A wheel without them under the tag of one with them would be taken for it by whoever keeps wheels.
    """

    def finalize_options(self) -> None:
        super().finalize_options()
        if platform.python_implementation() == "CPython" and not sysconfig.get_config_var("Py_GIL_DISABLED"):
            self.py_limited_api = "cp311"

    def run(self) -> None:
        if not self.skip_build:
            self.run_command("build")  # first of all, because the tag and the layout follow from what was built
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()


setup(cffi_modules=["oram/kernels/build.py:ffi"], cmdclass={"build_ext": OptionalBuildExt, "bdist_wheel": Wheel})

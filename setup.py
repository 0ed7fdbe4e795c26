"""Builds rnn_core's compiled modules; everything else about the package is in pyproject.toml.

rnn_core._NAME is made from src/_NAME.pyx, and from src/NAME.c if there is one. The rest of our C (cpu.c, pool.c and one
kernels_<isa>.c for each instruction set, every one with flags of its own) is linked into rnn_core._runtime alone,
because its tables and its thread pool must exist once in a process; the other modules reach it by `cimport`. The .pxd
files live in rnn_core/, since Cython finds them by package.

With RNN_CORE_WERROR=1 build_ext only compiles our own C, every warning an error (generated C does not pass that).
"""

import os
import platform
import shutil
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

# No flag here may reassociate, contract or assume away NaN: the bits are a promise.
C_FLAGS = ["-std=gnu11", "-O3", "-g0", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-pthread"]
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
ISA_FLAGS = {
    "kernels_avx2": ["-mavx2", "-mfma", "-mprfchw"],
    "kernels_avx512": [
        *["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprfchw", "-mprefer-vector-width=512"],
    ],
}
STRICT = os.environ.get("RNN_CORE_WERROR") == "1"
JOBS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def c_sources():
    """Our C files; those of other processors' instruction sets stay out."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return [c for c in sorted(glob("src/*.c")) if x86 or Path(c).stem not in ISA_FLAGS]


def module_of(source):
    """The module that one of our C files is linked into."""
    own = Path("src", f"_{Path(source).stem}.pyx")
    return f"rnn_core.{own.stem}" if own.exists() else "rnn_core._runtime"


def c_flags(source):
    """The flags for one of our C files; RC_HAVE_AVX2 and so on name the kernels that are linked in. Python's own flags
    have -fwrapv, which puts more indices into the inner loops than there are registers: a sixth of their speed."""
    have = [f"-DRC_HAVE_{Path(c).stem[8:].upper()}" for c in c_sources() if Path(c).stem.startswith("kernels_")]
    return [*C_FLAGS, "-fno-wrapv", *have] + ISA_FLAGS.get(Path(source).stem, [])


def is_fresh(made, source):
    """Whether an object file is newer than its C file, all headers and the flags."""
    needs = [source, "setup.py", *glob("src/*.h")]
    return made.exists() and made.stat().st_mtime > max(os.path.getmtime(path) for path in needs)


class BuildExt(build_ext):
    """build_ext that compiles our C files first, in parallel and each with its own flags."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or JOBS

    def build_extensions(self):
        with ThreadPoolExecutor(JOBS) as threads:
            objects = dict(zip(c_sources(), threads.map(self.compile_c, c_sources()), strict=True))
        if STRICT:
            return
        for ext in self.extensions:
            ext.extra_objects = [made for source, made in objects.items() if module_of(source) == ext.name]
            ext.depends = ext.depends + ext.extra_objects
        super().build_extensions()

    def build_extension(self, ext):
        """Take the module that stands in the source tree where it is up to date: pip builds in a folder of its own."""
        standing, built = Path(self.get_ext_filename(ext.name)), Path(self.get_ext_fullpath(ext.name))
        if standing.exists() and not newer_group([*ext.sources, *ext.depends], str(standing)):
            built.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(standing, built)
        super().build_extension(ext)

    def compile_c(self, source):
        """Compile one file where its object is out of date."""
        folder = Path("build", "native" + "-strict" * STRICT)  # these objects do not depend on the Python
        made = folder / Path(source).with_suffix(".o")
        if is_fresh(made, source):
            return str(made)
        flags = c_flags(source) + WARNINGS * STRICT
        return self.compiler.compile([source], output_dir=str(folder), include_dirs=["src"], extra_postargs=flags)[0]


def extensions():
    """One extension for each src/_*.pyx. The generated C goes to build/, never beside the source."""
    import numpy
    from Cython.Build import cythonize

    modules = [
        Extension(
            f"rnn_core.{Path(pyx).stem}",
            [pyx],
            include_dirs=["src", numpy.get_include()],
            define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
            extra_compile_args=C_FLAGS,
            extra_link_args=["-pthread"],
            depends=["setup.py", *glob("src/*.h")],
        )
        for pyx in sorted(glob("src/_*.pyx"))
    ]
    for module in modules:  # Cython looks for a module's own .pxd only beside the .pyx when it asks what is out of date
        pxd, made = Path("rnn_core", module.name[9:] + ".pxd"), Path("build", module.sources[0]).with_suffix(".c")
        if pxd.exists() and made.exists() and pxd.stat().st_mtime >= made.stat().st_mtime:
            made.unlink()
    return cythonize(
        modules,
        include_path=["."],
        build_dir="build",
        nthreads=JOBS if len(modules) > 1 else 0,
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "freethreading_compatible": True,
        },
    )


if __name__ == "__main__":
    setup(
        packages=[str(p.parent).replace(os.sep, ".") for p in sorted(Path("rnn_core").rglob("__init__.py"))],
        ext_modules=extensions(),
        cmdclass={"build_ext": BuildExt},
    )

"""Runs the C-level tests under sanitizers: every tests/native/test_*.c, linked with our C, must exit with 0.

usage: python tools/sanitize.py [test_NAME ...]
"""

import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE))
from setup import JOBS, WARNINGS, c_flags, c_sources, is_fresh  # noqa: E402

SANITIZERS = ["address,undefined", "thread"]
CC = shlex.split(os.environ.get("CC", "cc"))


def compile_c(source, folder, flags):
    """One object file. -O1 keeps the reports readable; with more than -g1 the kernels take minutes to compile."""
    made = folder / (Path(source).stem + ".o")
    line = [*CC, *c_flags(source), *WARNINGS, *flags, "-O1", "-g1", "-fno-omit-frame-pointer", "-Isrc"]
    if not is_fresh(made, source):
        subprocess.run([*line, "-c", source, "-o", str(made)], check=True)
    return str(made)


def run(sanitizer, tests):
    """Build and run all tests under one sanitizer; returns the names of those that failed."""
    flags = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    folder = Path("build", "sanitize", sanitizer.replace(",", "-"))
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(JOBS) as threads:
        ours = list(threads.map(lambda c: compile_c(c, folder, flags), c_sources()))
    failed = []
    for test in tests:
        program = folder / test.stem
        subprocess.run(
            [*CC, *flags, "-pthread", "-o", str(program), compile_c(str(test), folder, flags), *ours, "-lm"], check=True
        )
        print(f"{sanitizer}: {test.stem}", flush=True)
        if subprocess.run([str(program)]).returncode:
            failed.append(f"{test.stem} ({sanitizer})")
    return failed


def main():
    """All tests, or those named."""
    os.chdir(HERE)
    wanted = set(sys.argv[1:])
    tests = [t for t in sorted(Path("tests/native").glob("test_*.c")) if not wanted or t.stem in wanted]
    if not tests:
        sys.exit("no tests/native/test_*.c to run")
    failed = [name for sanitizer in SANITIZERS for name in run(sanitizer, tests)]
    if failed:
        sys.exit("failed: " + ", ".join(failed))


if __name__ == "__main__":
    main()

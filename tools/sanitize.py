"""Runs the C-level tests under sanitizers: every tests/native/test_*.c, linked with our C, must exit with 0; and the
time loops under ThreadSanitizer: tests/native/loops.py with a package built for it.

usage: python tools/sanitize.py [test_NAME ...] [loops]
"""

import os
import shlex
import shutil
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


def run_loops():
    """The package, built for ThreadSanitizer (GCC's) in a copy of its sources, on every kind of call; a race fails it.
    Python itself is not built for it: what it and NumPy do is not looked at."""
    folder = Path("build", "sanitize", "package")
    for part in ("src", "rnn_core"):
        shutil.copytree(part, folder / part, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy2("setup.py", folder)
    flags = dict.fromkeys(("CFLAGS", "LDFLAGS"), "-fsanitize=thread")
    build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    subprocess.run(build, cwd=folder, env=os.environ | flags, check=True)
    library = subprocess.run([*CC, "-print-file-name=libtsan.so"], stdout=subprocess.PIPE, text=True, check=True).stdout
    under = {"LD_PRELOAD": library.strip(), "PYTHONPATH": str(folder.resolve())}
    under["TSAN_OPTIONS"] = "ignore_noninstrumented_modules=1 report_signal_unsafe=0"
    print("thread: loops", flush=True)
    done = subprocess.run([sys.executable, "-P", "tests/native/loops.py"], env=os.environ | under)
    return ["loops (thread)"] if done.returncode else []


def main():
    """All tests, or those named."""
    os.chdir(HERE)
    wanted = set(sys.argv[1:])
    tests = [t for t in sorted(Path("tests/native").glob("test_*.c")) if not wanted or t.stem in wanted]
    unknown = wanted - {"loops"} - {t.stem for t in tests}
    if unknown:
        sys.exit("not among tests/native/test_*.c: " + ", ".join(sorted(unknown)))
    failed = [name for sanitizer in SANITIZERS if tests for name in run(sanitizer, tests)]
    if not wanted or "loops" in wanted:
        failed += run_loops()
    if failed:
        sys.exit("failed: " + ", ".join(failed))


if __name__ == "__main__":
    main()

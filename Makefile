# The environment is made here and nowhere else: torch first and exactly, so that pip cannot take a
# build with gigabytes of CUDA where a CPU one is on offer. constraints.txt pins the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := 2.13.0
TORCHVISION := 0.28.0
PIP := -m pip install --quiet --disable-pip-version-check
# pip compiles 18,000 modules on one core; here they are compiled on all. Not when first imported: a Ray whose processes
# all do that may not start in its 30 s.
PIP_PARTS := $(PIP) --no-compile
COMPILE := -m compileall -q -j 0 $(VENV)/lib > /dev/null 2>&1 || true # some packages have templates that are no Python

.PHONY: help demo test test-fast test-cpus test-lowest lint format docs site environment node-environment mxnet-environment mediapipe-environment clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)$$/\1|\2/p' Makefile | awk -F'|' '{printf "make %-18s %s\n", $$1, $$2}'

environment: $(VENV)/.ready  ## make .venv: the CPU build of torch, the package and its tools

$(VENV)/.ready: pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_PARTS) torch==$(TORCH)
	$(BIN)/python $(PIP_PARTS) --no-deps torchvision==$(TORCHVISION)
	$(BIN)/python $(PIP_PARTS) --constraint constraints.txt -e ".[dev]"
	$(BIN)/python $(COMPILE)
	touch $@

# What a node of a cluster needs: the same torch and the dependencies of pyproject.toml. Not the package:
# each job brings its own (`ray job submit --working-dir .`). Where there is no GPU,
# TORCH_INDEX=https://download.pytorch.org/whl/cpu spares gigabytes of CUDA.
TORCH_INDEX :=
DEPENDENCIES := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"])

node-environment: $(VENV)/.node-ready  ## make .venv on a cluster node: torch and the dependencies

$(VENV)/.node-ready: pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) $(TORCH_INDEX:%=--index-url %) torch==$(TORCH)
	$(BIN)/python $(PIP) $(TORCH_INDEX:%=--index-url %) --no-deps torchvision==$(TORCHVISION)
	$(BIN)/python $(PIP) --constraint constraints.txt $$($(BIN)/python -c '$(DEPENDENCIES)')
	touch $@

# The retired mxnet, to compare files with: an environment of its own, as it needs an old numpy and
# Python 3.11 or older. Tests marked mxnet run where it exists and are skipped elsewhere.
MXNET_VENV := .venv-mxnet

mxnet-environment: $(MXNET_VENV)/.ready  ## make .venv-mxnet, for the tests marked mxnet

$(MXNET_VENV)/.ready: Makefile
	rm -rf $(MXNET_VENV)
	$(PYTHON) -m venv $(MXNET_VENV)
	$(MXNET_VENV)/bin/python $(PIP) mxnet==1.9.1 "numpy<1.24"
	$(MXNET_VENV)/bin/python -c "import mxnet" 2> /dev/null
	touch $@

# MediaPipe, to find landmarks (jobs/mediapipe_landmarks.py): an environment of its own, as it needs numpy < 2, and
# pyarrow 26 needs numpy 2. The package is installed without torch.
MEDIAPIPE_VENV := .venv-mediapipe

mediapipe-environment: $(MEDIAPIPE_VENV)/.ready  ## make .venv-mediapipe, for jobs/mediapipe_landmarks.py

$(MEDIAPIPE_VENV)/.ready: Makefile
	rm -rf $(MEDIAPIPE_VENV)
	$(PYTHON) -m venv $(MEDIAPIPE_VENV)
	$(MEDIAPIPE_VENV)/bin/python $(PIP) mediapipe==0.10.21 "numpy<2" "pyarrow<26" pydantic pyyaml safetensors
	$(MEDIAPIPE_VENV)/bin/python $(PIP) --no-deps -e .
	$(MEDIAPIPE_VENV)/bin/python -c "import mediapipe, lafs_ray.data.mediapipe_landmarks" 2> /dev/null
	touch $@

# A fresh laptop: generated faces → landmark CNN → neighbors by an untrained network → LAFS over Ray → what came of it,
# in demo/report.html. No identity label is trained on (the page's 1-NN accuracy reads them); the pairs show other
# identities.
demo: environment  ## generated faces → landmark CNN → neighbors → LAFS on two Ray workers → demo/report.html
	$(BIN)/python jobs/make_faces.py demo/faces --identities 100 --images 20 --workers 2 --pairs 600 --landmarks 25
	$(BIN)/python jobs/cache_landmarks.py --from demo/faces/landmarks-25.parquet demo/faces/train.rec --out demo/landmarks
	$(BIN)/python jobs/train_landmarks.py configs/landmarks/demo.yaml
	$(BIN)/python jobs/pretrain.py configs/pretrain/demo.yaml run.name=untrained "duration=2 steps" \
		"optim.warmup=1 steps" compute.workers=0
	$(BIN)/python jobs/whiten.py demo/runs/untrained demo/faces/train.rec demo/whitened.safetensors --neighbors \
		--components 60 --force
	$(BIN)/python jobs/mine_neighbors.py demo/whitened.safetensors demo/faces/train.rec demo/neighbors.safetensors \
		--min-shared 16 --force
	$(BIN)/python jobs/pretrain.py configs/pretrain/demo.yaml neighbors.pairs=demo/neighbors.safetensors \
		neighbors.share=1
	$(BIN)/python jobs/report.py demo/runs/lafs --pairs demo/faces/pairs.bin --whiten demo/faces/train.rec \
		--neighbors --components 60 --out demo/report.html --force

# Threads of several processes on few cores wait for each other in loops. `make test-cpus` has other numbers.
ONE_THREAD := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1}

test: environment  ## run all tests (CPU, no network)
	$(ONE_THREAD) $(BIN)/python -m pytest --numprocesses 2 --dist loadgroup --durations 25

test-fast: environment  ## run the tests that start no Ray and take no minutes
	$(ONE_THREAD) $(BIN)/python -m pytest --numprocesses 2 --dist loadgroup -m "not ray and not slow and not mxnet and not mediapipe"

# Kernels of other CPUs, and other numbers of threads: what must be equal is equal under each of them.
NUMERIC := tests/transforms tests/methods $(wildcard tests/models/test_*.py) tests/training/test_fingerprint.py
test-cpus: environment  ## run the numeric tests as on CPUs with AVX2 only, and with AVX-512 but no AMX or bf16
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE \
		$(BIN)/python -m pytest -q --numprocesses 2 -m "not slow and not ray" $(NUMERIC)
	ONEDNN_MAX_CPU_ISA=AVX512_CORE OPENCV_CPU_DISABLE=AVX2 OMP_NUM_THREADS=3 OMP_WAIT_POLICY=PASSIVE \
		$(BIN)/python -m pytest -q --numprocesses 2 -m "not slow and not ray" $(NUMERIC)

# The oldest Python, torch and packages that pyproject.toml allows. Not in CI: this torch comes with
# gigabytes of CUDA. The newest of the other tools may want newer packages than these; pip says so.
LOWEST_PYTHON ?= python3.10
LOWEST_VENV := .venv-lowest
LOWEST := import re, tomllib; print(*(re.sub(r">=([\d.]+).*", r"==\1.*", one) \
	for one in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"] \
	if not one.startswith(("torch", "ray"))))
# Every test has its own limit (pytest-timeout); this one is for the whole run.
LOWEST_LIMIT_S ?= 3600

test-lowest: $(LOWEST_VENV)/.ready  ## run the tests with the oldest versions allowed
	timeout --signal=INT --kill-after=60 $(LOWEST_LIMIT_S) \
		$(LOWEST_VENV)/bin/python -m pytest --numprocesses 2 --dist loadgroup

$(LOWEST_VENV)/.ready: pyproject.toml Makefile
	$(LOWEST_PYTHON) -m venv $(LOWEST_VENV)
	$(LOWEST_VENV)/bin/python $(PIP) torch==2.6.0 torchvision==0.21.0
	$(LOWEST_VENV)/bin/python $(PIP) -e ".[dev]"
	$(LOWEST_VENV)/bin/python $(PIP) $$($(PYTHON) -c '$(LOWEST)')
	touch $@

lint: environment  ## check format, lint, types and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: environment  ## format the code and fix what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: environment  ## write docs/config.md from the configuration classes
	$(BIN)/python -m docs.config_docs > docs/config.md

site: environment  ## build the documentation as a web site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

clean:  ## remove what `make demo` made
	rm -rf demo

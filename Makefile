# The environment is made here and nowhere else: torch first and exactly, so that pip cannot take a
# build with gigabytes of CUDA where a CPU one is on offer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := 2.13.0
TORCHVISION := 0.28.0

.PHONY: demo test lint environment node-environment mxnet-environment clean

environment: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==$(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps torchvision==$(TORCHVISION)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

# What a node of a cluster needs: the same torch and the dependencies of pyproject.toml. Not the package:
# each job brings its own (`ray job submit --working-dir .`). Where there is no GPU,
# TORCH_INDEX=https://download.pytorch.org/whl/cpu spares gigabytes of CUDA.
TORCH_INDEX :=
DEPENDENCIES := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"])

node-environment: $(VENV)/.node-ready

$(VENV)/.node-ready: pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH_INDEX:%=--index-url %) torch==$(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH_INDEX:%=--index-url %) --no-deps torchvision==$(TORCHVISION)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$($(BIN)/python -c '$(DEPENDENCIES)')
	touch $@

# The retired mxnet, to compare files with: an environment of its own, as it needs an old numpy and
# Python 3.11 or older. Tests marked mxnet run where it is, and say so where it is not.
MXNET_VENV := .venv-mxnet

mxnet-environment: $(MXNET_VENV)/.ready

$(MXNET_VENV)/.ready: Makefile
	rm -rf $(MXNET_VENV)
	$(PYTHON) -m venv $(MXNET_VENV)
	$(MXNET_VENV)/bin/python -m pip install --quiet --disable-pip-version-check mxnet==1.9.1 "numpy<1.24"
	$(MXNET_VENV)/bin/python -c "import mxnet" 2> /dev/null
	touch $@

# A fresh laptop: generated faces → stage 1 → LAFS over Ray → what came of it, in demo/report.
demo: environment
	$(BIN)/python jobs/make_faces.py demo/faces --identities 100 --images 20 --workers 2 --pairs 600
	$(BIN)/python jobs/finetune.py configs/finetune/demo.yaml
	$(BIN)/python jobs/pretrain.py configs/pretrain/demo.yaml
	$(BIN)/python jobs/report.py demo/runs/lafs demo/faces/train.rec demo/faces/pairs.bin demo/report

test: environment
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup

lint: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf demo

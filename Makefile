# Every target sets up what it needs on a machine with git, make and Python 3.11 or 3.12.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
REQUIREMENTS ?= requirements/cpu.txt
BIN := .venv/bin
UV := .uv/bin/uv
OUT ?= runs/demo

# Many processes are started: their modules are compiled once.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo demo-effect test test-slow lint bench clean requirements

demo: .venv/ready
	$(BIN)/pairmill demo --out $(OUT) --fresh

demo-effect: .venv/ready  ## slow: the demo's pair of trainings with five seeds
	$(BIN)/python -m stages.demo.effect --out runs/demo-effect

test: .venv/ready
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-slow: .venv/ready
	$(BIN)/python -m pytest -m "slow"

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/ready
	$(BIN)/python tests/bench/all.py

requirements: .uv/ready  ## resolve the locked versions anew; cpu.txt and gpu.txt differ by the build of vLLM
	for device in cpu gpu; do \
		$(UV) pip compile -q --python-version 3.11 --extra clip --extra clusters --extra train --extra mllm --extra ray --extra s3 --extra dev -c requirements/pins.txt \
			--override requirements/overrides.txt --no-annotate --no-header --no-emit-index-url \
			pyproject.toml requirements/engine-$$device.txt -o requirements/$$device.txt || exit 1; \
	done

.uv/ready: requirements/uv.txt
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install -q -r requirements/uv.txt
	touch $@

.venv/ready: .uv/ready $(REQUIREMENTS) pyproject.toml
	test -x $(BIN)/python || $(UV) venv -q --python $(PYTHON) .venv
	$(UV) pip install -q --python $(BIN)/python --no-deps -r $(REQUIREMENTS)
	$(UV) pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf .venv .uv build *.egg-info runs

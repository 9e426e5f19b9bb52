# Everything runs in .venv, made from the hash-pinned locks/cpu.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.made
OPENVINO := .venv-openvino
FUZZ := .venv-fuzz
SWEEP := .venv-sweep

.DEFAULT_GOAL := help
.PHONY: help venv demo test check format bench soak fuzz openvino sweep locks clean

help:
	@echo "make demo      three nodes, real footage, one of them is killed (about a minute)"
	@echo "make test      all tests"
	@echo "make check     format, lint, types, import rules"
	@echo "make bench     every benchmark (make bench-NAME for one of tests/bench)"
	@echo "make soak      the property tests again, for long"
	@echo "make fuzz      ten million hostile inputs on each way in (ARGS=100000 for fewer)"
	@echo "make openvino  a second environment with OpenVINO, for its tests"
	@echo "make sweep     another with Ray, for simulations on several machines"
	@echo "make locks     pin the dependencies again"

venv: $(STAMP)

$(STAMP): locks/cpu.txt pyproject.toml setup.py $(wildcard models/native/*.[ch])
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "edge-node needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "This Python cannot make virtual environments. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "setting up $(VENV) (once)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r locks/cpu.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP)
	@$(BIN)/edge-node demo $(ARGS)

test: $(STAMP)
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal $(ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

BENCHES := $(filter-out report gossip_agent placement_bound placement_central delta_clips delta_methods delta_ours delta_parts delta_rivals delta_score simnet_cluster,$(patsubst tests/bench/%.py,%,$(wildcard tests/bench/[a-z]*.py)))

bench: $(BENCHES:%=bench-%)

bench-%: $(STAMP)
	$(BIN)/python -m tests.bench.$* $(ARGS)

soak: $(STAMP)
	HYPOTHESIS_PROFILE=soak $(BIN)/python -m pytest --timeout 3600 $(ARGS)

fuzz: $(FUZZ)/.made
	for target in raw payload batch; do \
	  $(FUZZ)/bin/python -m tests.fuzz $$target $(ARGS) || exit 1; \
	done

$(FUZZ)/.made: locks/fuzz.txt
	@$(PYTHON) -m venv --clear $(FUZZ)
	@$(FUZZ)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r locks/fuzz.txt
	@touch $@

openvino: $(OPENVINO)/.made

$(OPENVINO)/.made: locks/openvino.txt
	@$(PYTHON) -m venv --clear $(OPENVINO)
	@$(OPENVINO)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r locks/openvino.txt
	@touch $@

sweep: $(SWEEP)/.made

$(SWEEP)/.made: locks/sweep.txt
	@$(PYTHON) -m venv --clear $(SWEEP)
	@$(SWEEP)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r locks/sweep.txt
	@touch $@

LOCK := $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
  --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet

locks: $(STAMP)
	$(BIN)/pip install --quiet 'uv>=0.5'
	for name in cpu openvino; do \
	  $(LOCK) --extra $$name --extra video --extra mqtt --extra dev \
	    --output-file locks/$$name.txt || exit 1; \
	done
	$(LOCK) --extra fuzz --output-file locks/fuzz.txt
	$(LOCK) --extra cpu --extra dev --extra sweep --output-file locks/sweep.txt

clean:
	rm -rf $(VENV) $(OPENVINO) $(FUZZ) $(SWEEP) .bench build *.egg-info

# Everything runs from a fresh clone: each target sets up .venv once, from pinned versions with their hashes.
PYTHON ?= python3
WORKERS ?= 2
MINUTES ?= 4

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEV_READY := $(VENV)/.ready-dev
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
LOCKED := $(PIP_INSTALL) --require-hashes -c constraints.txt
RELEASE := dist/release-check
RELEASE_INSTALL := $(BIN)/python -m pip --python $(RELEASE)/environment install --quiet --disable-pip-version-check
# pip compiles one file after the other, which takes two minutes; some packages contain files for other versions of Python.
COMPILE := $(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true
# The tensors are small: more compute threads would wait for each other.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

# Some tests wait for a browser or a server, so one more worker than cores is useful.
# Test files are distributed as a whole, the longest first (tests/durations.json), so that fixtures of a file are set up once.
TESTS = $(ONE_THREAD) $(BIN)/python -m pytest -q -n $$(($(WORKERS) + 1)) --dist loadfile --no-loadscope-reorder -m
# Timed tests run after all others, one per core. They compare CPU seconds of one thread, and pass with half of the gain.
# A full run (`make bench`) needs the whole machine.
TIMED = $(ONE_THREAD) $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m

.PHONY: help setup demo test test-all check lint format docs bench lock release-check clean

help:
	@echo "make demo      set up, train on handwritten digits, write samples, a report and a video from a prompt (about 6 minutes on 2 cores, set-up included)"
	@echo "make test      all tests, except those for releases and those that compare times"
	@echo "make test-all  all tests"
	@echo "make check     lint, format, types, docstrings, import rules"
	@echo "make lint      the same without the rules that are tests"
	@echo "make docs      the documentation site in docs/_build/html"
	@echo "make lock      constraints.txt again; UPGRADE=--upgrade takes the newest versions"
	@echo "make release-check  distributions in dist, installed and tried in a new environment, and its list of contents (SBOM)"
	@echo "make bench     every benchmark, in full; docs/benchmarks.md is generated"

setup: $(DEV_READY)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# pip of before 2026 takes no hashes from a constraints file. A folder of sources has no hash, so the project itself is
# installed last, without dependencies, by the build backend of the lock.
$(READY): pyproject.toml constraints.txt .ci/requirements.py .ci/torch-cpu.txt | $(BIN)/python
	@sed -n '/^pip==/,/[^\\]$$/p' constraints.txt >$(VENV)/pip.txt
	$(PIP_INSTALL) --require-hashes -r $(VENV)/pip.txt
	@$(PIP_INSTALL) --require-hashes --no-deps -r .ci/torch-cpu.txt 2>/dev/null || true
	@$(BIN)/python .ci/requirements.py video >$(VENV)/requirements.txt
	$(LOCKED) -r $(VENV)/requirements.txt
	$(PIP_INSTALL) --no-deps --no-build-isolation -e .
	@$(COMPILE)
	@touch $@

# Checks and tests also need the tools, Sphinx, and the packages that benchmarks compare with.
$(DEV_READY): $(READY)
	@$(BIN)/python .ci/requirements.py hf dev docs bench video endpoint studio >$(VENV)/requirements-dev.txt
	$(LOCKED) -r $(VENV)/requirements-dev.txt
	@$(COMPILE)
	@touch $@

demo: $(READY)
	$(ONE_THREAD) $(BIN)/python -m unveil demo --out runs/demo --minutes $(MINUTES)

test: $(DEV_READY)
	$(TESTS) "not release and not timed"

# Both parts run and print their exit codes: a failure in one does not hide the other.
test-all: $(DEV_READY)
	@first=0; $(TESTS) "not timed" || first=$$?; \
	timed=0; $(TIMED) timed || timed=$$?; \
	echo "tests: exit code $$first; timed tests: exit code $$timed"; \
	test $$first -eq 0 && test $$timed -eq 0

lint: $(DEV_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

check: lint
	$(ONE_THREAD) $(BIN)/python -m pytest -q --durations=0 tests/rules -m "not slow and not release"

# Writes the versions and hashes of all packages; needs the package index.
lock: $(DEV_READY)
	@$(BIN)/python .ci/requirements.py release >$(VENV)/requirements-release.txt
	$(LOCKED) -r $(VENV)/requirements-release.txt
	$(BIN)/python .ci/lock.py $(UPGRADE)

# What a user of a release gets: the wheel with the locked packages, in an environment without the checkout. The list of
# contents is in the form of CycloneDX, with versions, licences and dependencies.
release-check: $(DEV_READY)
	@$(BIN)/python .ci/requirements.py release >$(VENV)/requirements-release.txt
	$(LOCKED) -r $(VENV)/requirements-release.txt
	rm -rf $(RELEASE)
	$(BIN)/python -m hatchling build -d $(RELEASE)
	$(PYTHON) -m venv $(RELEASE)/environment
	@$(RELEASE_INSTALL) --require-hashes --no-deps -r .ci/torch-cpu.txt 2>/dev/null || true
	@$(BIN)/python .ci/requirements.py hf video endpoint studio >$(RELEASE)/requirements.txt
	$(RELEASE_INSTALL) --require-hashes -c constraints.txt -r $(RELEASE)/requirements.txt
	$(RELEASE_INSTALL) --no-deps $(RELEASE)/*.whl
	cd $(RELEASE) && environment/bin/unveil sample ddpm-digits --label 3 -n 4 -o sample.png
	$(BIN)/python -m cyclonedx_py environment $(RELEASE)/environment/bin/python --pyproject pyproject.toml \
		--mc-type library --output-reproducible --of JSON -o $(RELEASE)/sbom.json
	$(BIN)/python .ci/sbom.py $(RELEASE)/sbom.json

format: $(DEV_READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DEV_READY)
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: $(DEV_READY)
	$(ONE_THREAD) $(BIN)/python -m benchmarks

clean:
	rm -rf build dist docs/_build .pytest_cache .ruff_cache

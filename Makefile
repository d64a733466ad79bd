# One command each. Every target installs what it needs into .venv first.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
export HF_HUB_OFFLINE := 1

.PHONY: install test check lint types docs bench bench-check demo build clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt $(wildcard integrations/*/pyproject.toml)
	$(PYTHON) -m venv .venv
	@# torch alone first: its pinned version may be installed already as a build for this machine.
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench,dev]' \
		--editable './integrations/langchain[dev]' --editable ./integrations/llama_index \
		--editable ./integrations/ray
	@touch $(INSTALLED)

# The tests that take seconds; `make check` runs the long ones too.
test: $(INSTALLED)
	$(BIN)/pytest -n 2 --dist loadfile -m 'not slow'

check: lint types docs build
	$(BIN)/pytest -n 2 --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site

# All published figures, anew, and what the docs make of them: some two hours. DATA is the folder of chunking_evaluation's
# corpora and questions, XQUAD the file xquad.en.json (docs/benchmarks.md).
bench: $(INSTALLED)
	$(BIN)/python benchmarks/search.py $(DATA)
	$(BIN)/python benchmarks/stages.py $(DATA)
	$(BIN)/python benchmarks/ingest.py $(DATA)
	$(BIN)/python benchmarks/quality.py $(DATA) $(XQUAD)
	$(BIN)/python benchmarks/context.py
	$(BIN)/python benchmarks/encode.py --documents 24
	$(BIN)/python benchmarks/precision.py $(DATA) --corpora chatlogs state_of_the_union wikitexts
	$(BIN)/python benchmarks/search_overhead.py
	$(BIN)/python benchmarks/write_rate.py
	$(BIN)/python benchmarks/write_rate.py --grpc
	$(BIN)/python benchmarks/slow_server.py
	$(BIN)/python benchmarks/index_overhead.py $(DATA)
	$(BIN)/python benchmarks/recall.py $(DATA)
	$(BIN)/python benchmarks/dimensions.py $(DATA)
	$(BIN)/python benchmarks/footprint.py $(DATA)
	$(BIN)/python benchmarks/cli.py $(DATA)
	$(BIN)/python benchmarks/draw.py
	$(BIN)/python benchmarks/fill_tables.py

# Small versions, in minutes: fails when a ratio is worse than recorded by more than its margin.
bench-check: $(INSTALLED)
	$(BIN)/python benchmarks/check.py $(DATA) $(XQUAD)

# Answers questions about this project from its own documents, with the offline model.
demo: $(INSTALLED)
	@rm -rf build/demo
	$(BIN)/pplx-vectorstore index docs --model all-minilm-l6-v2 --store build/demo
	$(BIN)/pplx-vectorstore search "Why not use cosine on the shifted bytes?" --store build/demo -k 3
	$(BIN)/pplx-vectorstore search "What happens to a chunk longer than a window?" --store build/demo -k 3
	$(BIN)/pplx-vectorstore info --store build/demo

# The wheels of all distributions, installed alone into a fresh environment and tried there.
build: $(INSTALLED)
	rm -rf dist build/smoke
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/python -m build --no-isolation --outdir dist integrations/langchain
	$(BIN)/python -m build --no-isolation --outdir dist integrations/llama_index
	$(BIN)/python -m build --no-isolation --outdir dist integrations/ray
	$(PYTHON) -m venv build/smoke
	build/smoke/bin/pip install --quiet --constraint constraints.txt dist/*.whl
	build/smoke/bin/python .ci/smoke.py

clean:
	rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Two commands are enough on a new machine: `make workbook` and `make test`. Both install first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROFILE ?= quick

.PHONY: install workbook figures deck test lint format lab bench clean

install: $(STAMP)

# The stamp makes a second call instant; it is renewed when the dependencies change.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[cluster,offline,slides,test,track]"
	touch $(STAMP)

workbook: install
	$(BIN)/picollm workbook --profile $(PROFILE)

figures: install
	$(BIN)/picollm figures

deck: install
	$(BIN)/picollm deck

test: install
	$(BIN)/python -m pytest -q

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lab: install
	$(BIN)/jupyter lab --ip=127.0.0.1 notebooks

bench: install
	$(BIN)/picollm bench

clean:
	rm -rf $(VENV) artefacts/runs artefacts/report.html

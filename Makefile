# Two commands do everything on a machine with nothing but Python and make:
#   make demo       installs into .venv, then shows offline what pretrained weights are worth
#   make test       installs into .venv, then runs the tests but for the slow ones
# For those who change it:
#   make install    .venv with EXTRAS=dev,demo,export,inspect, or with others
#   make lint       ruff and mypy
#   make test-slow  whole commands, several processes, killed runs
#   make docs       the pages, in site/README.html
#   make picture    docs/demo.png
#   make clean      removes what the others have made
PYTHON ?= python3
EXTRAS ?= dev,demo,export,inspect
CHROMIUM ?= chromium
BIN := .venv/bin
COMMA := ,
STAMP := .venv/.installed-$(subst $(COMMA),-,$(EXTRAS))

.PHONY: help install demo test test-slow docs lint picture clean
.DEFAULT_GOAL := help

help:
	@sed -n '1,10s/^# *//p' Makefile

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit('finetune needs Python 3.11 or newer, and $(PYTHON) is ' + sys.version.split()[0] + '; try: make PYTHON=python3.11 ...') if sys.version_info < (3, 11) else None"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $(STAMP)

demo: install
	$(BIN)/python -m finetune.demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: install
	$(BIN)/python -m pytest -m "not slow"

test-slow: install
	$(BIN)/python -m pytest -m slow

docs: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/sphinx-build -q -W --keep-going -b html -c docs . site
	$(BIN)/python -m pytest -q tests/docs/test_commands.py

# what the README shows
picture: demo
	$(CHROMIUM) --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=840,1150 \
		--user-data-dir="$$(mktemp -d)" --screenshot=docs/demo.png "file://$(CURDIR)/demo/index.html" 2>/dev/null

clean:
	rm -rf site .venv runs demo dist build .pytest_cache .mypy_cache .ruff_cache

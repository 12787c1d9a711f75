# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Both install what they need into .venv, at the versions of constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check constraints clean

demo: .venv/demo.installed  ## build the small real model, generate, compare: a contact sheet and a table of times
	$(BIN)/build-engines --model flux-emoji --overwrite
	$(BIN)/taylorseer compare bundles/flux-emoji --output out/contact-sheet.png
	@echo "Look at out/contact-sheet.png"

test: .venv/dev.installed  ## the whole test suite, without a GPU
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: .venv/dev.installed  ## style, types and the rule that the three stages never import each other
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

constraints: .venv/dev.installed  ## write constraints.txt from what is installed
	(echo '# Every library of the demo and the tests, pinned: `pip install -c constraints.txt ...`.  Made by `make constraints`.'; \
	 $(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//') > constraints.new && mv constraints.new constraints.txt

clean:  ## everything that was made here
	rm -rf .venv bundles out build dist *.egg-info

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv

.venv/demo.installed: .venv/bin/python pyproject.toml constraints.txt
	$(INSTALL) --editable '.[export,onnxruntime]'
	@touch $@

.venv/dev.installed: .venv/demo.installed
	$(INSTALL) --editable '.[export,onnxruntime,tensorrt-rtx,profile,dev]'
	@touch $@

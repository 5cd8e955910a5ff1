# Two lines take a bare Linux machine with git, make and Python 3.11 or newer to a result:
# `make demo` and `make test`. Everything they install goes into .venv and .nox.

PYTHON ?= python3
NOX := .venv/bin/nox

.PHONY: demo test lint clean

demo: $(NOX)
	$(NOX) -s demo

test: $(NOX)
	$(NOX) --parallel auto

lint: $(NOX)
	$(NOX) -s lint imports

$(NOX): constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "make: $(PYTHON) is missing or older than Python 3.11; name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "make: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt 'nox[uv]'
	@touch $(NOX)

clean:
	rm -rf .venv .nox dist .pytest_cache .ruff_cache .import_linter_cache

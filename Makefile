# What a developer does here. Every target prepares what it needs; scripts/bootstrap explains what it cannot.
#
#   make demo          the chat example with a real local model, on gunicorn + gevent
#   make test          the checks and the tests, with coverage     (ARGS="tests/sansio -k crlf" for some)
#   make slow          the tests that take their time: thousands of streams, long silences, the wheel
#   make servers       the tests on other WSGI servers and behind proxies
#   make fuzz          looks for bytes that break a decoder        (ARGS="--seconds 600 sse" for one of them)
#   make lint          the checks alone
#   make matrix        the tests on the pinned stacks, old to new  (ENVS="py37-flask10" for some)
#   make bench         the benchmarks
#   make wheel-check   build sdist and wheel, run the tests against the installed wheel
#   make venv          only prepare .venv
#   make clean         remove everything that these made

SHELL = /bin/sh
BIN = .venv/bin
PY = $(BIN)/python
ARGS =
ENVS =
CHECKED = flask_llmstream scripts tests $(wildcard examples benchmarks gunicorn.conf.py)

.PHONY: help venv demo test slow servers fuzz lint checks bench matrix wheel-check clean

help:
	@sed -n 's/^#   //p' Makefile

venv:
	@scripts/bootstrap test

demo:
	@scripts/bootstrap demo
	@exec $(BIN)/flask-llmstream demo $(ARGS)

ifeq ($(strip $(ARGS)),)
# Not `pytest --cov`: the package must not be imported before measuring starts. With CI set Hypothesis takes the
# same examples each time, so that what is covered does not depend on chance.
test: export CI = 1
test: lint
	@rm -f .coverage .coverage.*
	$(BIN)/coverage run -m pytest tests/live tests/browser -m "not slow"
	$(BIN)/coverage run -m pytest -n 2 --ignore=tests/live --ignore=tests/browser -m "not (servers or slow)"
	@$(BIN)/coverage combine --quiet
	$(BIN)/coverage report
	$(BIN)/coverage report --include='flask_llmstream/sansio/*' --fail-under=100
else
test: venv
	$(BIN)/pytest $(ARGS)
endif

slow: venv
	$(BIN)/pytest -m slow $(ARGS)

# LLMSTREAM_RECORD=docs/servers.json keeps what is measured; scripts/servers_page.py makes a page of it.
servers: venv
	$(BIN)/pytest -m servers $(ARGS)

fuzz:
	@scripts/bootstrap fuzz
	$(PY) tests/fuzz/run.py $(ARGS)

# The tools of Python 3.9 are too old to agree with the current ones.
lint: venv
	@if $(PY) -c 'import sys; sys.exit(sys.version_info >= (3, 10))'; \
	then echo '==> no checks: they need Python 3.10 or newer'; \
	else $(MAKE) --no-print-directory checks; fi

checks:
	$(BIN)/flake8 $(CHECKED)
	$(BIN)/isort --check-only --diff $(CHECKED)
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/vermin flask_llmstream

bench:
	@scripts/bootstrap bench
	$(PY) -m benchmarks $(ARGS)

matrix: venv
	$(PY) scripts/matrix.py $(ENVS) $(if $(ARGS),-- $(ARGS))

wheel-check: venv
	$(PY) scripts/matrix.py wheel $(if $(ARGS),-- $(ARGS))

clean:
	rm -rf .venv .matrix build dist *.egg-info htmlcov .coverage .coverage.* .mypy_cache .pytest_cache
	rm -rf .hypothesis .import_linter_cache fuzz-findings
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

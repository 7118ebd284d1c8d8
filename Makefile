# What a developer does here. Every target prepares what it needs; scripts/bootstrap explains what it cannot.
#
#   make demo          the chat example with a real local model, on gunicorn + gevent
#   make test          the checks and the tests, with coverage     (ARGS="tests/sansio -k crlf" for some)
#   make slow          the tests that take their time: thousands of streams, long silences, the wheel
#   make servers       the tests on other WSGI servers and behind proxies
#   make faults      the tests that break things: networks, processes, clocks, disks; as root
#   make fuzz          looks for bytes that break a decoder        (ARGS="--seconds 600 sse" for one of them)
#   make lint          the checks alone
#   make matrix        the tests on the pinned stacks, old to new  (ENVS="py37-flask10" for some)
#   make audit         known vulnerabilities of what it depends on; needs pip-audit and the network
#   make bench         the benchmarks, beside other servers too    (ARGS="--without litellm": less to install)
#   make scaling       what one stream costs, and docs/scaling.md from that; four minutes on two idle cores
#   make soak          a thousand streams with random lives, of which nothing may be left (MINUTES=10 SEED=1)
#   make wheel-check   build sdist and wheel, run the tests against the installed wheel
#   make venv          only prepare .venv
#   make clean         remove everything that these made

SHELL = /bin/sh
BIN = .venv/bin
PY = $(BIN)/python
ARGS =
ENVS =
MINUTES = 10
SEED = 1
# Most tests wait for servers, so three share two processors; those marked timing are run alone. Stealing work
# keeps the neighbours in a file together, so that few servers are started twice.
TOGETHER = -n 3 --dist worksteal
CHECKED = flask_llmstream scripts tests $(wildcard examples benchmarks gunicorn.conf.py)

.PHONY: help venv demo test slow servers faults fuzz lint checks audit bench scaling soak matrix wheel-check clean

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
	$(BIN)/coverage run -m pytest tests/live tests/browser -m "timing and not slow"
	$(BIN)/coverage run -m pytest $(TOGETHER) -m "not (timing or servers or faults or slow)"
	@$(BIN)/coverage combine --quiet
	$(BIN)/coverage report
	$(BIN)/coverage report --include='flask_llmstream/sansio/*' --fail-under=100

slow: venv
	$(BIN)/pytest -m "slow and timing"
	$(BIN)/pytest $(TOGETHER) -m "slow and not timing"
else
test: venv
	$(BIN)/pytest $(ARGS)

slow: venv
	$(BIN)/pytest -m slow $(ARGS)
endif

# LLMSTREAM_RECORD=docs/servers.json keeps what is measured; scripts/servers_page.py makes a page of it.
servers: venv
	$(BIN)/pytest -m servers $(ARGS)

# In the same way LLMSTREAM_RECORD=docs/reliability.json and scripts/reliability_page.py. Without coverage.
faults: venv
	$(BIN)/pytest -n 3 --dist loadfile -m "faults and not timing" $(ARGS)
	$(BIN)/pytest -m "faults and timing" tests/faults

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

audit: venv
	$(PY) scripts/audit.py $(ARGS)

bench:
	@scripts/bootstrap bench
	$(PY) -m benchmarks $(ARGS)

scaling: venv
	$(PY) -m benchmarks.measured --check --json docs/scaling.json
	$(PY) scripts/scaling_page.py

soak: venv
	$(PY) -m benchmarks.soak --minutes $(MINUTES) --seed $(SEED) $(ARGS)

matrix: venv
	$(PY) scripts/matrix.py $(ENVS) $(if $(ARGS),-- $(ARGS))

wheel-check: venv
	$(PY) scripts/matrix.py wheel $(if $(ARGS),-- $(ARGS))

clean:
	rm -rf .venv .matrix build dist *.egg-info htmlcov .coverage .coverage.* .mypy_cache .pytest_cache
	rm -rf .hypothesis .import_linter_cache fuzz-findings
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

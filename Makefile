# Each target prepares the environment first, in which a finished one costs less than a second.
# PYTHON: the Python to start from, 3.11 to 3.13. If it has detectron2, its environment is used; otherwise .venv is made.
# PHOTOS: a folder of your own photos for the demo.
# TESTS:  what `make test` runs, by default everything.

PYTHON ?= python3
TESTS ?=
export PHOTOS

SETUP = "$(PYTHON)" tools/setup_environment.py

.PHONY: help setup demo test test-browser lint clean

help:
	@echo "make setup               prepare the environment (the other targets do it, too)"
	@echo "make demo [PHOTOS=DIR]   index photos, splice some, search them; writes output/demo/report.html"
	@echo "make test [TESTS=PATH]   run the tests"
	@echo "make test-browser        run the tests of the web app's page in Chromium"
	@echo "make lint                check style and types"
	@echo "make clean               remove what the demo, the tests and the checks have written"

setup:
	@$(SETUP) > /dev/null

# Last line on stdout: the figures as JSON. The shell reads PHOTOS from the environment, so that any name will do.
demo:
	@python="$$($(SETUP))" && "$$python" tools/demo.py $${PHOTOS:+--photos "$$PHOTOS"}

# Two threads at most, for the processes that tests start.
test:
	@python="$$($(SETUP))" && OMP_NUM_THREADS="$${OMP_NUM_THREADS:-2}" "$$python" -m pytest -q $(TESTS)

# What pytest leaves out otherwise, because it needs Debian's packages chromium and chromium-driver.
test-browser:
	@python="$$($(SETUP))" && OMP_NUM_THREADS="$${OMP_NUM_THREADS:-2}" "$$python" -m pytest -q -m browser tests/web

lint:
	@python="$$($(SETUP))" && "$$python" -m ruff check . && "$$python" -m ruff format --check . && "$$python" -m mypy

# .venv stays, since making it again takes minutes: remove it by hand.
clean:
	rm -rf build dist output/demo oesir_d2.egg-info .pytest_cache .mypy_cache .ruff_cache
	find oesir_d2 tools tests datasets -name __pycache__ -type d -prune -exec rm -rf {} +

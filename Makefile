# What a contributor does. `make help` lists it.
.DEFAULT_GOAL := help

# The first Python on the path that starts and is new enough.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& { echo $$p; break; }; done)
BIN := .venv/bin

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

install: .venv/installed ## make .venv with all that the service and its tests need

.venv/installed: requirements.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, with its venv module." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/installed-dev: .venv/installed requirements/dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements/dev.txt
	@touch $@

.venv/installed-browser: .venv/installed requirements/browser.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements/browser.txt
	@touch $@

run: install ## start the service on its own store, and say how to try it
	@exec $(BIN)/python -m app.embedded

simulate: install ## play Amplitude against a running make run, with 10,000 users or as SIMULATE says
	@test -f "$${DATA_DIR:-var}/ingest-key" || { echo "Start the service first, in another terminal: make run" >&2; exit 1; }
	@SIMULATOR_KEY="$$(cat "$${DATA_DIR:-var}/ingest-key")" $(BIN)/python -m simulator sync \
		"http://127.0.0.1:$${PORT:-8000}" --users 10000 $(SIMULATE)

test: install ## run the tests
	$(BIN)/pytest -n 3

chaos: install ## sync under faults for some minutes, and prove that nothing is lost
	$(BIN)/python -m tests.chaos

FUZZ_SECONDS ?= 3600

fuzz: install ## look for inputs that break the parsers: an hour, or FUZZ_SECONDS
	$(BIN)/pip install --quiet --disable-pip-version-check --only-binary :all: \
		-r requirements/fuzz.txt || true
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) $(FUZZ)

browser: install .venv/installed-browser ## test the dashboard in Chromium, and take its pictures for docs/
	PICTURES=docs/pictures $(BIN)/pytest tests/system/test_dashboard.py

.venv/audit/installed: requirements/audit.txt .venv/installed
	test -x .venv/audit/bin/python || $(BIN)/python -m venv .venv/audit
	.venv/audit/bin/pip install --quiet --disable-pip-version-check -r requirements/audit.txt
	@touch $@

audit: .venv/audit/installed ## look for known holes in packages, and for doubtful code of our own
	.venv/audit/bin/bandit --quiet -ll -r app simulator reader wsgi.py gunicorn.conf.py
	.ci/audit

sbom: .venv/audit/installed ## write var/sbom.json: all packages, as a CycloneDX bill of materials
	@mkdir -p var
	.venv/audit/bin/cyclonedx-py requirements requirements.txt --output-reproducible --of JSON -o var/sbom.json

licences: .venv/audit/installed ## write docs/licences.md
	{ printf '# Licences\n\nOf the packages in requirements.txt, as they say themselves. Made by `make licences`.\n\n'; \
	  .venv/audit/bin/pip-licenses --python $(BIN)/python --format markdown --packages \
	    $$(grep -oE '^[A-Za-z0-9._-]+==' requirements.txt | tr -d = | sed 's/^zope-/zope./'); } > docs/licences.md

lint: .venv/installed-dev ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-dev ## check types
	$(BIN)/mypy

bench: install ## measure the speed, beside the afternoon version and the store alone
	$(BIN)/python -m bench $(BENCH)

bench-rename: install ## rename a cohort of a million members under load, and kill the service meanwhile
	$(BIN)/python -m bench rename $(BENCH)

bench-cluster: install ## measure clusters of one, two and three masters, and what waiting for replicas costs
	$(BIN)/python -m bench cluster $(BENCH)

bench-growth: install ## grow a cohort to ten million users, and see what becomes of speed: some minutes
	$(BIN)/python -m bench growth $(BENCH)

docs: install ## write the parts of docs/ that are made from the code
	$(BIN)/python -c 'import re, pathlib; from app.settings import reference; \
		page = pathlib.Path("docs/configuration.md"); \
		page.write_text(page.read_text().split("\n|")[0].rstrip() + "\n\n" + reference())'
	$(BIN)/python -c 'import pathlib; from app.telemetry.metrics.definitions import reference; \
		page = pathlib.Path("docs/metrics.md"); \
		page.write_text(page.read_text().split("\n| metric")[0].rstrip() + "\n\n" + reference())'
	$(BIN)/python -c 'import pathlib; from app.cli.reference import reference; \
		page = pathlib.Path("docs/cli.md"); \
		page.write_text(page.read_text().split("\n## ")[0].rstrip() + "\n\n" + reference())'

release: ## date the change log's Unreleased section as VERSION, commit and tag; pushes nothing
	@test -z "$$(git status --porcelain)" || { echo "Commit everything first." >&2; exit 1; }
	@grep -q '^VERSION = "$(VERSION)"$$' app/web/openapi/document.py \
		|| { echo "VERSION must be that of app/web/openapi/document.py." >&2; exit 1; }
	@grep -q '^## Unreleased$$' CHANGELOG.md && ! git rev-parse -q --verify "v$(VERSION)" >/dev/null \
		|| { echo "There is nothing unreleased, or v$(VERSION) is there already." >&2; exit 1; }
	$(BIN)/python -c 'import datetime, pathlib; page = pathlib.Path("CHANGELOG.md"); \
		page.write_text(page.read_text().replace("## Unreleased\n", \
			f"## Unreleased\n\n## $(VERSION) - {datetime.date.today()}\n", 1))'
	git commit -q -m "Release $(VERSION)" CHANGELOG.md
	git tag -a "v$(VERSION)" -m "Version $(VERSION)"

requirements: .venv/installed-dev ## update the pinned requirements to the newest versions
	for name in requirements requirements/dev requirements/browser requirements/fuzz requirements/audit; do $(BIN)/uv pip compile --quiet --upgrade --universal \
		--python-version 3.11 --generate-hashes --no-annotate \
		--custom-compile-command "make requirements" $$name.in -o $$name.txt; done

.PHONY: help install run simulate test chaos bench bench-rename bench-cluster bench-growth lint types docs release requirements fuzz browser audit sbom licences

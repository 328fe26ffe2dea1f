#!/usr/bin/env bash
# Everything that CI runs: lint, types, tests. Arguments go to pytest: scripts/test.sh -k views
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/pytest "$@"

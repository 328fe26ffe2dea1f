#!/usr/bin/env bash
# Lint, types and tests: what CI runs. Arguments go to pytest: scripts/test.sh -k views
# usage: scripts/test.sh [--all] [ARGUMENTS OF PYTEST]
#   --all: also what takes long (compilers, Ray, PostgreSQL, ONNX, benchmarks, simulations), with the coverage shown;
#          what this machine lacks fails instead of being skipped. Run it before a release.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

choice=(-m "not all")
while [ $# -gt 0 ]; do
    case $1 in
        --all)
            export CI=true
            choice=(--cov kdsweep --cov-report "term:skip-covered") ;;
        *) break ;;
    esac
    shift
done

scripts/setup.sh dev
if [ "${choice[0]}" != -m ] && ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then
    # A study is tested on PostgreSQL too.
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends postgresql; } \
        >/dev/null || echo "test: PostgreSQL could not be installed; its tests will fail" >&2
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# A process for each core, with one thread: several threads each would slow one another down many times over.
# Tests that share what takes long to make stay together, and go first (tests/conftest.py).
OMP_NUM_THREADS=1 .venv/bin/pytest --numprocesses "$(nproc)" --dist loadgroup --no-loadscope-reorder "${choice[@]}" "$@"

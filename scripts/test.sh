#!/usr/bin/env bash
# Lint, types and tests: everything that CI runs, in sixteen to twenty minutes on two cores.
# usage: scripts/test.sh [--all] [--lowest] [ARGUMENT...]     Arguments go to pytest: scripts/test.sh -k views
# --all: also the tests that take long or need what few users have (compilers, Ray, PostgreSQL, ONNX, benchmarks,
#        simulations), with the coverage shown; what this machine lacks fails instead of being skipped.
# --lowest: the tests alone, with the oldest releases that pyproject.toml admits (in .venv-lowest).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

all=false
lowest=false
while [ $# -gt 0 ]; do
    case $1 in
        --all) all=true ;;
        --lowest) lowest=true ;;
        *) break ;;
    esac
    shift
done

if $lowest; then
    venv=.venv-lowest
    scripts/setup.sh --lowest dev
else
    venv=.venv
    scripts/setup.sh dev
    $venv/bin/ruff check .
    $venv/bin/ruff format --check .
    $venv/bin/mypy
fi
if $all; then
    export CI=true # tests/support/needs.py
    chosen=(--cov kdsweep --cov-report "term:skip-covered")
    if ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then
        { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends postgresql; } \
            >/dev/null || echo "test: PostgreSQL could not be installed; its tests will fail" >&2
    fi
else
    chosen=(-m "not all")
fi
# A process for each core, with one thread: several threads each would slow one another down many times over.
# Tests that share what takes long to make stay in one process, and go first (tests/conftest.py).
OMP_NUM_THREADS=1 $venv/bin/pytest \
    --numprocesses "$(env -u OMP_NUM_THREADS nproc)" --dist loadgroup --no-loadscope-reorder "${chosen[@]}" "$@"

#!/usr/bin/env bash
# Everything that CI runs: lint, types, tests. Arguments go to pytest: scripts/test.sh -k views
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh dev
# Studies are tested on PostgreSQL too. Without it, and without the right to install it, those tests are skipped.
if ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends postgresql; } \
        >/dev/null || echo "test: PostgreSQL could not be installed; its tests will be skipped" >&2
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# A process for each core, with one thread: several threads each would slow one another down many times over.
OMP_NUM_THREADS=1 .venv/bin/pytest --numprocesses "$(nproc)" --dist loadfile "$@"

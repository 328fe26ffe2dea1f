#!/usr/bin/env bash
# Builds the documentation into site/. A broken link fails, and so does a public name without a docstring.
# usage: scripts/docs.sh            then open site/index.html
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh docs
.venv/bin/python scripts/docs_check.py
NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet
echo "docs: site/index.html"

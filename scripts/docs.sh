#!/usr/bin/env bash
# Builds the documentation into site/. A broken link fails, and so does a public name without a docstring.
# usage: scripts/docs.sh     then open site/index.html, or, for the search, .venv/bin/python -m http.server -d site
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh docs
.venv/bin/python scripts/docs_check.py
# The theme's makers advertise on stderr otherwise.
NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict   # --quiet would hide the warnings, which fail the build
# The pages need no network.
if grep -rnoE '(src|<link[^>]*href)="https?://[^"]+"' --include='*.html' site; then
    echo "docs: the pages above fetch something from elsewhere" >&2
    exit 1
fi
echo "docs: site/index.html"

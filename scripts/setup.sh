#!/usr/bin/env bash
# Makes .venv with kdsweep and its pinned dependencies. Needs Python 3.11 or newer and pip; does nothing on a second call.
# usage: scripts/setup.sh [--lowest] [EXTRA]     (demo | docs | dev; dev contains the others)
# --lowest: .venv-lowest instead, with the oldest releases that pyproject.toml admits.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
versions=(--constraints constraints.txt)
if [ "${1:-}" = --lowest ]; then
    venv=.venv-lowest
    versions=(--resolution lowest-direct --upgrade)
    shift
fi
extra=${1:-demo}
python=$(command -v python3.11 || command -v python3)
stamp=$venv/.installed-$extra
wanted=$(cat pyproject.toml constraints.txt | sha256sum)

# The stamp holds what was installed: a change of requirements installs again.
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "setup: Python 3.11 or newer is needed, but $python is $("$python" --version 2>&1)." >&2
    exit 2
}
[ -x $venv/bin/python ] || "$python" -m venv $venv
# uv takes seconds where pip takes minutes.
[ -x $venv/bin/uv ] || $venv/bin/python -m pip install --quiet --disable-pip-version-check uv
echo "setup: installing kdsweep[$extra] into $venv (a few GB of libraries the first time)"
$venv/bin/uv pip install --quiet --compile-bytecode --python $venv/bin/python "${versions[@]}" --editable ".[$extra]"
echo "$wanted" >"$stamp"

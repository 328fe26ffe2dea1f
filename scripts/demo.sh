#!/usr/bin/env bash
# The whole experiment in a few minutes on two cores, without a download after installation: teacher, scratch,
# label smoothing, a search over alpha and tau, and the table that compares them. Arguments go to kdsweep.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh demo
export KDSWEEP_HOME=${KDSWEEP_HOME:-$PWD/demo}
mkdir -p "$KDSWEEP_HOME"
# A run for each core, of at most four: each takes a gigabyte of memory.
cores=$(nproc)
.venv/bin/kdsweep sweep=demo sweep.n_jobs=$((cores < 4 ? cores : 4)) "$@"
echo
echo "To look at the runs:  KDSWEEP_HOME=$KDSWEEP_HOME .venv/bin/kdsweep-ui"
echo "This table again:     KDSWEEP_HOME=$KDSWEEP_HOME .venv/bin/kdsweep-report"

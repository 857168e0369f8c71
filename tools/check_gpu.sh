#!/usr/bin/env bash
# Check a GPU in at most 28 minutes and write gpu_report.md; see --help.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
activate=${root}/tools/activate_python.sh
if [ ! -f "${activate}" ]; then
    echo "check_gpu.sh: error: no environment; run tools/install.sh" >&2
    exit 1
fi
# shellcheck source=/dev/null
. "${activate}"
exec python3 -m speechllm.bin.check_gpu "$@"

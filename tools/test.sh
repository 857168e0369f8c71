#!/usr/bin/env bash
# Set up everything and run the tests; arguments go to pytest.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "${root}"
tools/install.sh --extras dev
# shellcheck source=/dev/null
. tools/activate_python.sh

git ls-files -z '*.sh' .ci/run | xargs -0 shellcheck
echo "shellcheck: no complaint"
exec python3 -m pytest -q test "$@"

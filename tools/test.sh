#!/usr/bin/env bash
# Install the environment, then run shellcheck and pytest. Arguments are passed to pytest.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "${root}"
tools/install.sh --extras dev
# shellcheck source=/dev/null
. tools/activate_python.sh

git ls-files -z '*.sh' .ci/run | xargs -0 shellcheck
echo "shellcheck: passed"
exec python3 -m pytest -q test "$@"

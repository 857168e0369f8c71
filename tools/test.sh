#!/usr/bin/env bash
# Install the environment, then run the linters and the tests. Arguments go to pytest.
set -euo pipefail

case ${1:-} in
    --help | -h)
        echo "Usage: tools/test.sh [arguments of pytest, such as -k guard]
Installs the environment with the extras dev, demo and serve into tools/venv, then runs
the linters (shellcheck, ruff, mypy, codespell) and the tests, about half an hour."
        exit 0 ;;
esac

root=$(cd "$(dirname "$0")/.." && pwd)
cd "${root}"
tools/install.sh --extras "dev demo serve"
# shellcheck source=/dev/null
. tools/activate_python.sh

git ls-files -z '*.sh' .ci/run | xargs -0 shellcheck
echo "shellcheck: passed"
ruff check --quiet
echo "ruff check: passed"
ruff format --check --quiet || {
    ruff format --check >&2 || true
    echo "test.sh: error: files are not formatted; run 'ruff format'" >&2
    exit 1
}
echo "ruff format: passed"
mypy
git grep -Ilz '' | xargs -0 codespell
echo "codespell: passed"
# A process per core, up to four; each test file is run by one of them.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec python3 -m pytest -q -n auto --maxprocesses 4 --dist loadfile \
    --no-loadscope-reorder test "$@"

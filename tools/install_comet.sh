#!/usr/bin/env bash
# Build tools/venv-comet, from which stage 13 scores translations with COMET. It is an
# environment of its own: COMET wants transformers < 5 and numpy < 2.
set -euo pipefail

usage="Usage: tools/install_comet.sh [options]
Builds tools/venv-comet, pinned and hashed. A second run does nothing when all is in
place. About 1.4 GB with the CPU build of torch, and two to five minutes.

  --python PATH        Python 3.11 or 3.12 to build it with
                       [the first that fits of python3, python3.12, python3.11]
  --torch_index URL    one more package index for torch, such as
                       https://download.pytorch.org/whl/cpu for the small build
                       without CUDA [none]
  --help               this text

Stage 13 uses it when it is there. The model is Unbabel/wmt22-comet-da (fetched
from the Hugging Face hub at its first use); SPEECHLLM_COMET_MODEL names another one, a
local .ckpt file, or none."

python=
torch_index=
fail() {
    echo "install_comet.sh: error: $*" >&2
    exit 1
}
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) echo "${usage}"; exit 0 ;;
        --python | --torch_index)
            [ $# -ge 2 ] || fail "$1 needs a value"
            printf -v "${1#--}" '%s' "$2"
            shift 2 ;;
        *) fail "unknown option '$1'; --help lists them" ;;
    esac
done

tools=$(cd "$(dirname "$0")" && pwd)
venv=${tools}/venv-comet
stamp=${venv}/.speechllm-installed

# One installation at a time; a second one waits and then finds all done.
exec 9> "${tools}/.install_comet.lock"
command -v flock > /dev/null && flock 9

want=$(cat "${tools}"/requirements/{comet,torch,pip}.txt | sha256sum)
want="${want%% *} ${venv}"
if [ -f "${stamp}" ] && [ "$(< "${stamp}")" = "${want}" ]; then
    echo "install_comet.sh: ${venv} is in place"
    exit 0
fi

chosen=
for candidate in ${python:-python3 python3.12 python3.11}; do
    if "${candidate}" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2> /dev/null; then
        chosen=${candidate}
        break
    fi
done
[ -n "${chosen}" ] || fail "no Python 3.11 or 3.12 found (looked at: ${python:-python3 python3.12 python3.11}); name one with --python"
"${chosen}" -m venv --clear "${venv}" ||
    fail "'${chosen} -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv"

start=$(date +%s)
say() { echo "install_comet.sh: $(($(date +%s) - start)) s: $*"; }
pip() { "${venv}/bin/python" -m pip --disable-pip-version-check "$@"; }
pip install -qq --require-hashes -r "${tools}/requirements/pip.txt"
say "COMET and its libraries, by their hashes"
# The hashed file names every package it leads to, but torch.
pip install -qq --no-deps --require-hashes -r "${tools}/requirements/comet.txt"
say "torch"
pip install -qq ${torch_index:+--extra-index-url "${torch_index}"} \
    -r "${tools}/requirements/torch.txt" -c "${tools}/requirements/comet.in"
"${venv}/bin/python" -I -c 'import comet' 2> "${venv}/import.log" ||
    fail "COMET does not import: $(tail -n 1 "${venv}/import.log"); run tools/install_comet.sh again"
echo "${want}" > "${stamp}"
say "done: ${venv}, $(du -sh "${venv}" | cut -f 1)"

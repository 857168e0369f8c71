#!/usr/bin/env bash
# Install COMET, which stage 13 scores translations with, into tools/venv-comet. It needs
# its own environment because it requires transformers < 5 and numpy < 2.
set -euo pipefail

usage="Usage: tools/install_comet.sh [options]
Installs COMET into tools/venv-comet, pinned and hashed. A re-run does nothing if it is
complete. It takes about 1.4 GB with the CPU build of torch, and two to five minutes.

  --python PATH        Python 3.11 or 3.12 for the environment
                       [the first suitable of python3, python3.12, python3.11]
  --torch_index URL    additional package index for torch, such as
                       https://download.pytorch.org/whl/cpu for the small build
                       without CUDA [none]
  --help               print this text

Stage 13 uses COMET if it is installed. The model is Unbabel/wmt22-comet-da, downloaded
from the Hugging Face hub at first use. SPEECHLLM_COMET_MODEL selects another model, a
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
        *) fail "unknown option '$1'; --help lists the options" ;;
    esac
done

tools=$(cd "$(dirname "$0")" && pwd -P)  # one path, also through links
venv=${tools}/venv-comet
stamp=${venv}/.speechllm-installed

# One installation at a time: a second one waits, then finds nothing to do.
exec 9> "${tools}/.install_comet.lock"
command -v flock > /dev/null && flock 9

expected=$(cat "${tools}"/requirements/{comet,torch,pip}.txt | sha256sum)
expected=${expected%% *}
if [ -f "${stamp}" ] && read -r found place < "${stamp}" &&
    [ "${found}" = "${expected}" ] && [ "${place}" -ef "${venv}" ]; then
    echo "install_comet.sh: ${venv} is complete"
    exit 0
fi
# --clear would empty the folder that a link leads to.
[ ! -L "${venv}" ] || fail "${venv} is a link to $(readlink -f "${venv}"), which is not replaced; remove the link"

chosen=
for candidate in ${python:-python3 python3.12 python3.11}; do
    if "${candidate}" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2> /dev/null; then
        chosen=${candidate}
        break
    fi
done
[ -n "${chosen}" ] || fail "no Python 3.11 or 3.12 found (tried: ${python:-python3 python3.12 python3.11}); give one with --python"
begun=${tools}/.venv-comet.begun  # while it has no stamp
if [ -n "$(ls -A "${venv}" 2> /dev/null)" ] && [ ! -f "${stamp}" ] && [ ! -f "${begun}" ]; then
    fail "${venv} was not made by install_comet.sh, so it is not replaced; move it away"
fi
: > "${begun}"
"${chosen}" -m venv --clear "${venv}" ||
    fail "'${chosen} -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv"
: > "${stamp}"
rm "${begun}"

start=$(date +%s)
log() { echo "install_comet.sh: $(($(date +%s) - start)) s: $*"; }
pip() { "${venv}/bin/python" -m pip --disable-pip-version-check "$@"; }
pip install -qq --require-hashes -r "${tools}/requirements/pip.txt"
log "COMET and its libraries"
# The hashed file lists all dependencies except torch.
pip install -qq --no-deps --require-hashes -r "${tools}/requirements/comet.txt"
log "torch"
pip install -qq ${torch_index:+--extra-index-url "${torch_index}"} \
    -r "${tools}/requirements/torch.txt" -c "${tools}/requirements/comet.in"
"${venv}/bin/python" -I -c 'import comet' 2> "${venv}/import.log" ||
    fail "COMET cannot be imported: $(tail -n 1 "${venv}/import.log"); run tools/install_comet.sh again"
echo "${expected} ${venv}" > "${stamp}"
log "done: ${venv}, $(du -sh "${venv}" | cut -f 1)"

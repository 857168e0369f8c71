#!/usr/bin/env bash
# Build the Python environment: tools/venv, or the one that is active.
#
# torch and espnet cannot be installed by one plain `pip install`: espnet's metadata
# wants setuptools < 74, torch's wants >= 77. So espnet comes with --no-deps and what
# we use of its dependencies stands in requirements/base.in.
set -euo pipefail

usage="Usage: tools/install.sh [options]
Builds tools/venv with all that speechllm needs, pinned and hashed. A second run
does only what is missing. Without an NVIDIA GPU see --torch_index.

  --extras \"A B\"          extra groups: dev (tests), demo, qlora (4-bit models, GPU)
                          [none]; COMET has tools/install_comet.sh
  --use_active_env true   install into the active environment, not tools/venv [false]
  --python PATH           Python 3.11 or 3.12 to build tools/venv with
                          [the first that fits of python3, python3.12, python3.11]
  --torch_index URL       one more package index for torch, such as
                          https://download.pytorch.org/whl/cpu for the small build
                          without CUDA [none]
  --if_stale true         say nothing when all is in place [false]
  --help                  this text"

extras=
use_active_env=
python=
torch_index=
if_stale=false

fail() {
    echo "install.sh: error: $*" >&2
    exit 1
}

while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) echo "${usage}"; exit 0 ;;
        --extras | --use_active_env | --python | --torch_index | --if_stale)
            [ $# -ge 2 ] || fail "$1 needs a value"
            printf -v "${1#--}" '%s' "$2"
            shift 2 ;;
        *) fail "unknown option '$1'; --help lists them" ;;
    esac
done
for name in use_active_env if_stale; do
    case ${!name} in
        true | false | '') ;;
        *) fail "--${name} takes true or false, not '${!name}'" ;;
    esac
done

tools=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "${tools}")
for extra in ${extras}; do
    case ${extra} in
        dev | demo | qlora) ;;
        *) fail "unknown extra '${extra}'; there are: dev demo qlora" ;;
    esac
done

# One installation at a time; a second one waits and then finds all done.
exec 9> "${tools}/.install.lock"
command -v flock > /dev/null && flock 9

# The active environment, once chosen, stays chosen until tools/venv is asked for.
activate=${tools}/activate_python.sh
if [ -z "${use_active_env}" ]; then
    use_active_env=false
    if [ -f "${activate}" ] && ! grep -q tools/venv "${activate}"; then
        use_active_env=true
    fi
fi

fits='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))'
find_python() {
    local candidate
    for candidate in ${python:-python3 python3.12 python3.11}; do
        if "${candidate}" -c "${fits}" 2> /dev/null; then
            "${candidate}" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    fail "no Python 3.11 or 3.12 found (looked at: ${python:-python3 python3.12 python3.11}); name one with --python"
}

if "${use_active_env}"; then
    if [ -f "${activate}" ]; then
        # shellcheck source=/dev/null
        . "${activate}"
    fi
    env_python=$(find_python)
    prefix=$("${env_python}" -c 'import sys; print(sys.prefix)')
    [ -w "${prefix}" ] || fail "the active environment ${prefix} cannot be written to; activate one of your own"
else
    prefix=${tools}/venv
    env_python=${prefix}/bin/python
fi

# What has been installed is noted as checksums of what was asked for.
stamp=${prefix}/.speechllm-installed
want() { # <group>
    case $1 in
        base) cat "${tools}"/requirements/{base,torch,espnet,pip}.txt "${root}/setup.py" ;;
        *) cat "${tools}/requirements/$1.txt" ;;
    esac | sha256sum | cut -c -64 | sed "s|^|$1 ${root} |"
}
installed() { [ -f "${stamp}" ] && grep -qxF "$(want "$1")" "${stamp}"; }
note() {
    { grep -v "^$1 " "${stamp}" 2> /dev/null || true; want "$1"; } > "${stamp}.new"
    mv "${stamp}.new" "${stamp}"
}

stale=false
"${env_python}" -c "${fits}" 2> /dev/null || stale=true
[ -f "${activate}" ] || stale=true
for group in base ${extras}; do
    installed "${group}" || stale=true
done
if "${if_stale}" && ! "${stale}"; then
    exit 0
fi

if "${stale}"; then
    start=$(date +%s)
    say() { echo "install.sh: $(($(date +%s) - start)) s: $*"; }

    if ! "${use_active_env}"; then
        # A folder that was moved, or whose Python is gone, is built anew.
        if ! { [ -x "${env_python}" ] && "${env_python}" -c "${fits}" 2> /dev/null &&
            grep -qF "${prefix}" "${prefix}/bin/activate"; }; then
            base_python=$(find_python)
            say "building ${prefix} with ${base_python}"
            "${base_python}" -m venv --clear "${prefix}" ||
                fail "'${base_python} -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv"
        fi
    fi
    pip() { "${env_python}" -m pip --disable-pip-version-check "$@"; }

    if ! installed base; then
        say "pip"
        pip install -qq --require-hashes -r "${tools}/requirements/pip.txt"
        # The hashed files name every package they lead to, but torch.
        say "the libraries, by their hashes"
        pip install -qq --no-deps --require-hashes -r "${tools}/requirements/base.txt"
        # What is left of torch's wishes is CUDA's libraries, where its wheel has CUDA.
        say "torch"
        pip install -qq ${torch_index:+--extra-index-url "${torch_index}"} \
            -r "${tools}/requirements/torch.txt"
        say "espnet"
        pip install -qq --no-deps --require-hashes -r "${tools}/requirements/espnet.txt"
        say "speechllm itself, editable"
        pip install -qq --no-deps --no-build-isolation -e "${root}"
        note base
    fi
    for extra in ${extras}; do
        installed "${extra}" && continue
        say "extra: ${extra}"
        pip install -qq --no-deps --require-hashes -r "${tools}/requirements/${extra}.txt"
        note "${extra}"
    done
    "${env_python}" -c 'import espnet2.bin.launch, torch, transformers, peft, av, lhotse' ||
        fail "the environment does not import; remove ${prefix} and run again"

    echo "export PATH='${prefix}/bin':\"\${PATH}\"" > "${activate}.new"
    "${use_active_env}" ||
        echo "export VIRTUAL_ENV='${tools}/venv'" >> "${activate}.new"
    mv "${activate}.new" "${activate}"
    say "done"
fi

"${env_python}" "${tools}/check_install.py"

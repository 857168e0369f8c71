#!/usr/bin/env bash
# Install the Python environment into tools/venv or into the active environment.
#
# Everything is installed with --no-deps from hashed files that list every dependency,
# except torch and torchaudio, whose wheels depend on the machine. espnet's dependencies
# that we use are in requirements/base.in: 202511 requires setuptools < 74, torch >= 77.
set -euo pipefail

usage="Usage: tools/install.sh [options]
Installs the dependencies of speechllm into tools/venv, pinned and hashed. A re-run
installs only what is missing. Without an NVIDIA GPU see --torch_index.

  --extras \"A B\"          extra groups: dev (tests), demo, serve, lightning (FSDP), deepspeed,
                          qlora (4-bit models, GPU) [none]; COMET has
                          tools/install_comet.sh
  --use_active_env true   install into the active environment, not tools/venv [false]
  --espnet VERSION        202611 (needs Python 3.12 or 3.13) or 202511 (Python 3.11)
                          [the version for the Python]
  --python PATH           Python 3.11, 3.12 or 3.13 for tools/venv [the first suitable of
                          python3, python3.13, python3.12, python3.11; an existing
                          tools/venv keeps its Python]
  --torch_index URL       additional package index for torch, such as
                          https://download.pytorch.org/whl/cpu for the small build
                          without CUDA [none]
  --if_stale true         print nothing if the environment is complete [false]
  --help                  print this text"

extras=
use_active_env=
espnet=
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
        --extras | --use_active_env | --espnet | --python | --torch_index | --if_stale)
            [ $# -ge 2 ] || fail "$1 needs a value"
            printf -v "${1#--}" '%s' "$2"
            shift 2 ;;
        *) fail "unknown option '$1'; --help lists the options" ;;
    esac
done
for name in use_active_env if_stale; do
    case ${!name} in
        true | false | '') ;;
        *) fail "--${name} takes true or false, not '${!name}'" ;;
    esac
done

tools=$(cd "$(dirname "$0")" && pwd -P)  # one path, also through links
root=$(dirname "${tools}")
for extra in ${extras}; do
    case ${extra} in
        dev | demo | serve | lightning | deepspeed | qlora) ;;
        *) fail "unknown extra '${extra}'; there are: dev demo serve lightning deepspeed qlora" ;;
    esac
done

# One installation at a time: a second one waits, then finds nothing to do.
exec 9> "${tools}/.install.lock"
command -v flock > /dev/null && flock 9

# A re-run keeps using the active environment unless --use_active_env false is given.
activate=${tools}/activate_python.sh
if [ -z "${use_active_env}" ]; then
    use_active_env=false
    if [ -f "${activate}" ] && ! grep -q tools/venv "${activate}"; then
        use_active_env=true
    fi
fi

needs="ESPnet 202611 needs Python 3.12 or 3.13, 202511 needs 3.11"
case ${espnet} in
    202611) versions="3.12 3.13" ;;
    202511) versions="3.11" ;;
    '') versions="3.11 3.12 3.13" ;;
    *) fail "--espnet takes 202611 or 202511, not '${espnet}'" ;;
esac
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null; }
fits() { # <python>: has one of the versions
    local version
    version=$(version_of "$1") && [[ " ${versions} " == *" ${version} "* ]]
}
if [ -n "${python}" ]; then
    version=$(version_of "${python}") || fail "--python ${python}: not a Python"
    fits "${python}" || fail "--python ${python} is Python ${version}; ${needs}"
    versions=${version}
fi
candidates=${python:-python3 python3.13 python3.12 python3.11}
find_python() {
    local candidate
    for candidate in ${candidates}; do
        if fits "${candidate}"; then
            "${candidate}" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    fail "no suitable Python found (tried: ${candidates}); ${needs}; give one with --python"
}

if "${use_active_env}"; then
    if [ -f "${activate}" ]; then
        # shellcheck source=/dev/null
        . "${activate}"
    fi
    env_python=$(find_python)
    prefix=$("${env_python}" -c 'import sys; print(sys.prefix)')
    [ -w "${prefix}" ] || fail "the active environment ${prefix} is not writable; activate one that is"
else
    prefix=${tools}/venv
    env_python=${prefix}/bin/python
fi

# The stamp file holds a checksum of the requirements of each installed group.
stamp=${prefix}/.speechllm-installed
expected_stamp() { # <group>
    case $1 in
        base) cat "${tools}"/requirements/{base,torch,torchaudio,espnet,pip}.txt "${root}/setup.py" ;;
        *) cat "${tools}/requirements/$1.txt" ;;
    esac | sha256sum | cut -c -64 | sed "s|^|$1 ${root} |"
}
installed() { [ -f "${stamp}" ] && grep -qxF "$(expected_stamp "$1")" "${stamp}"; }
note() {
    { grep -v "^$1 " "${stamp}" 2> /dev/null || true; expected_stamp "$1"; } > "${stamp}.new"
    mv "${stamp}.new" "${stamp}"
}

in_place() { # the environment in ${prefix} was made there
    local made_in
    made_in=$(sed -n "s/^ *\(export \)\?VIRTUAL_ENV=[\"']\?\(\/[^\"']*\)[\"']\?$/\2/p" "${prefix}/bin/activate" | tail -n 1)
    [ -n "${made_in}" ] && [ "${made_in}" -ef "${prefix}" ]
}

stale=false
fits "${env_python}" || stale=true
[ -f "${activate}" ] || stale=true
for group in base ${extras}; do
    installed "${group}" || stale=true
done
if "${if_stale}" && ! "${stale}"; then
    exit 0
fi

if "${stale}"; then
    start=$(date +%s)
    log() { echo "install.sh: $(($(date +%s) - start)) s: $*"; }

    if ! "${use_active_env}"; then
        # Whatever is done here would be done to the environment that a link leads to.
        [ ! -L "${prefix}" ] || fail "${prefix} is a link to $(readlink -f "${prefix}"), which is not replaced; remove the link, or activate that environment and give --use_active_env true"
        # Rebuild a venv that was moved, or whose Python was removed or is another one.
        if ! { [ -x "${env_python}" ] && fits "${env_python}" && in_place; }; then
            base_python=$(find_python)
            begun=${tools}/.venv.begun  # while it has no stamp
            if [ -n "$(ls -A "${prefix}" 2> /dev/null)" ] && [ ! -f "${stamp}" ] && [ ! -f "${begun}" ]; then
                fail "${prefix} was not made by install.sh, so it is not replaced; move it away"
            fi
            log "creating ${prefix} with ${base_python}"
            : > "${begun}"
            "${base_python}" -m venv --clear "${prefix}" ||
                fail "'${base_python} -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv"
            : > "${stamp}"
            rm "${begun}"
        fi
    fi
    pip() { "${env_python}" -m pip --disable-pip-version-check "$@"; }

    if ! installed base; then
        log "pip"
        pip install -qq --require-hashes -r "${tools}/requirements/pip.txt"
        # The hashed files list all dependencies except torch.
        log "libraries: $(grep -c == "${tools}/requirements/base.txt") packages"
        pip install -qq --no-deps --require-hashes -r "${tools}/requirements/base.txt"
        # Only the CUDA libraries are left of torch's dependencies, if its wheel has CUDA.
        log "torch"
        pip install -qq ${torch_index:+--extra-index-url "${torch_index}"} \
            -r "${tools}/requirements/torch.txt" -r "${tools}/requirements/torchaudio.txt"
        log "espnet"
        pip install -qq --no-deps --require-hashes -r "${tools}/requirements/espnet.txt"
        log "speechllm, editable"
        pip install -qq --no-deps --no-build-isolation -e "${root}"
        note base
    fi
    for extra in ${extras}; do
        installed "${extra}" && continue
        log "extra: ${extra}"
        pip install -qq --no-deps --require-hashes -r "${tools}/requirements/${extra}.txt"
        note "${extra}"
    done
    "${env_python}" -c 'import espnet2.bin.launch, speechllm.training.task, peft, av, lhotse' ||
        fail "the packages in ${prefix} cannot be imported; remove it and run tools/install.sh again"

    echo "export PATH='${prefix}/bin':\"\${PATH}\"" > "${activate}.new"
    "${use_active_env}" ||
        echo "export VIRTUAL_ENV='${tools}/venv'" >> "${activate}.new"
    mv "${activate}.new" "${activate}"
    log "done"
fi

"${env_python}" "${tools}/check_install.py"

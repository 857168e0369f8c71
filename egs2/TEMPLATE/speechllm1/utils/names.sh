# shellcheck shell=bash disable=SC2154,SC2034  # reads and sets variables of speechllm.sh
# Names of sets, models and folders in speechllm.sh.

tag_of() { basename "$1" .yaml; }
model_tag() { # <model folder or hub id>: print a name without slashes
    local folder
    if [ -d "$1" ]; then
        folder=$(realpath "$1")
        basename "${folder%/model}"
    else
        echo "${1//\//--}"
    fi
}
models_tag() { # <config>: print what --encoder and --llm add to the name of a folder
    local name
    [ -n "$1" ] || return 0
    if [ -n "${encoder}" ]; then
        name=${encoder%/}
        printf '_encoder_%s' "${name//[^A-Za-z0-9._-]/_}"
    fi
    # A config without an LLM, such as a warm-up's, is the same with any --llm.
    if [ -n "${llm}" ] && ! grep -qE '^llm: *(null|~|) *(#.*)?$' "$1"; then
        name=${llm%/}
        printf '_llm_%s' "${name//[^A-Za-z0-9._-]/_}"
    fi
}
with_speeds() { # <set>: print its name after stage 2
    if [ -n "${speed_perturb_factors}" ]; then echo "$1_sp"; else echo "$1"; fi
}
without_weights() { # <tasks or sets>
    local words
    read -ra words <<< "$1"
    echo "${words[@]%%\**}"
}
sets_in() { # <folder> <set …>: set ${dirs} to the sets' folders in it
    local set
    dirs=()
    for set in "${@:2}"; do dirs+=("$1/${set}"); done
}
examples() { # <phase> <set>: print the folder of its examples
    if [ "$1" = train ] || [ "$1" = test ]; then
        echo "${dumpdir}/examples/$2"
    else
        echo "${dumpdir}/examples/$2_$1"
    fi
}
require_examples() { # <folder …>
    local folder name
    for folder in "$@"; do
        for name in wav.scp text text_ctc utt2task; do
            [ -f "${folder}/${name}" ] || fail "no examples in ${folder} (${name} is missing); run stage 5 first"
        done
    done
}
stats_dir() { # <phase>: print the folder of its lengths
    local end=${1}_suffix dir
    dir=${speechllm_stats_dir:-${expdir}/speechllm_stats_$1${!end}}
    [ -z "${speechllm_stats_dir}" ] || [ "$1" = train ] || dir+=_$1
    echo "${dir}"
}

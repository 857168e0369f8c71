#!/usr/bin/env bash
# From a fresh clone to a table of scores: install the environment if it is missing, then
# run a recipe's run.sh with the given options.
set -euo pipefail

root=$(cd "$(dirname "$0")" && pwd)
recipe=mini_asterisk
arguments=()
recipes() {
    local path
    for path in "${root}"/egs2/*/speechllm1/run.sh; do
        path=${path%/speechllm1/run.sh}
        [ "${path##*/}" = TEMPLATE ] || printf '%s ' "${path##*/}"
    done
}
help=false
while [ $# -gt 0 ]; do
    case $1 in
        --recipe)
            [ $# -ge 2 ] || { echo "run.sh: error: --recipe needs a value; there are: $(recipes)" >&2; exit 1; }
            recipe=$2
            shift 2 ;;
        --help | -h)
            help=true
            shift ;;
        *)
            arguments+=("$1")
            shift ;;
    esac
done

directory=${root}/egs2/${recipe}/speechllm1
if [[ ${recipe} == */* || ${recipe} == TEMPLATE ]] || [ ! -f "${directory}/run.sh" ]; then
    echo "run.sh: error: no recipe '${recipe}'; there are: $(recipes)" >&2
    exit 1
fi
if "${help}"; then
    echo "Usage: ./run.sh [--recipe NAME] [options of the recipe]
Installs the environment if it is missing (tools/install.sh), then runs
egs2/NAME/speechllm1/run.sh with the options. Recipes: $(recipes)[mini_asterisk]

    ./run.sh --stage 1 --stop_stage 13     from raw speech to the table of scores
"
    exec "${directory}/run.sh" --help
fi

. "${root}/egs2/TEMPLATE/speechllm1/utils/end_children.sh"
"${root}/tools/install.sh" --if_stale true
exec "${directory}/run.sh" "${arguments[@]}"

#!/usr/bin/env bash
# Make the folder of a new recipe from the template, or add missing files to a recipe.
set -euo pipefail

template=$(cd "$(dirname "$0")" && pwd -P)
egs2=$(dirname "$(dirname "${template}")")
copies=(run.sh cmd.sh db.sh local/data.sh conf/prompts.yaml conf/train.yaml conf/decode.yaml)
links=(path.sh speechllm.sh baselines.sh utils)
help_message="Usage: egs2/TEMPLATE/speechllm1/setup.sh CORPUS
Makes the recipe egs2/CORPUS/speechllm1 (this path can be given, too): copies the files to
edit (${copies[*]})
and links the shared ones (${links[*]}).
Files that exist are not changed; a re-run adds what is missing."

fail() {
    echo "setup.sh: error: $*" >&2
    exit 1
}
case ${1:-} in
    --help | -h) echo "${help_message}"; exit 0 ;;
esac
[ $# -eq 1 ] || fail "expected one argument, the name of a corpus; see --help"
name=${1%/}
name=${name%/speechllm1}
name=${name##*/}
[[ ${name} =~ ^[a-z][a-z0-9_]*$ ]] ||
    fail "'${name}' is not a corpus name; use lower-case letters, digits and _"
target=${egs2}/${name}/speechllm1
if [[ $1 == */* ]] && [ "$(realpath -m "$1")" != "${target}" ]; then
    fail "'$1' is not egs2/<corpus>/speechllm1 in ${egs2}"
fi

added=()
mkdir -p "${target}/local" "${target}/conf"
for file in "${copies[@]}"; do
    if [ ! -e "${target}/${file}" ] && [ ! -L "${target}/${file}" ]; then
        cp "${template}/${file}" "${target}/${file}"
        sed -i -e "s/my_corpus/${name}/g" -e "s/MY_CORPUS/${name^^}/g" "${target}/${file}"
        added+=("${file}")
    fi
done
for file in "${links[@]}"; do
    if [ ! -e "${target}/${file}" ] && [ ! -L "${target}/${file}" ]; then
        ln -s "../../TEMPLATE/speechllm1/${file}" "${target}/${file}"
        added+=("${file}")
    fi
done
if [ ${#added[@]} -gt 0 ]; then
    echo "setup.sh: added to egs2/${name}/speechllm1: ${added[*]}"
else
    echo "setup.sh: egs2/${name}/speechllm1 is complete; nothing was changed"
fi

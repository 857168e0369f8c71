# shellcheck shell=bash
# The environment of a recipe; sourced in egs2/<corpus>/speechllm1.
MAIN_ROOT=$(cd ../../.. && pwd)

if [ -f "${MAIN_ROOT}/tools/activate_python.sh" ]; then
    # shellcheck source=/dev/null
    . "${MAIN_ROOT}/tools/activate_python.sh"
elif ! python3 -c 'import espnet2, transformers' 2> /dev/null; then
    echo "error: no Python environment; run ${MAIN_ROOT}/tools/install.sh first" >&2
    exit 1
fi

export PATH="${PWD}/utils:${PATH}"
export PYTHONPATH="${MAIN_ROOT}${PYTHONPATH:+:${PYTHONPATH}}"
export PYTHONIOENCODING=UTF-8
export PYTHONUNBUFFERED=1  # logs and progress as they come
export LC_ALL=C            # Kaldi's sorting order
# The fast tokenizers' threads and our worker processes do not mix.
export TOKENIZERS_PARALLELISM=false

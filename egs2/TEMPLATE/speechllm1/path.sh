# shellcheck shell=bash
# Environment of a recipe; source it in egs2/<corpus>/speechllm1.
MAIN_ROOT=$(cd ../../.. && pwd)

if [ -f "${MAIN_ROOT}/tools/activate_python.sh" ]; then
    # shellcheck source=/dev/null
    . "${MAIN_ROOT}/tools/activate_python.sh"
elif ! python3 -c 'import espnet2, transformers' 2> /dev/null; then
    echo "$(basename "$0"): error: no Python environment; run ${MAIN_ROOT}/tools/install.sh first" >&2
    exit 1
fi

export PATH="${PWD}/utils:${PATH}"
export PYTHONPATH="${MAIN_ROOT}${PYTHONPATH:+:${PYTHONPATH}}"
export PYTHONIOENCODING=UTF-8
export PYTHONUNBUFFERED=1  # write logs and progress without delay
export LC_ALL=C            # Kaldi's sorting order
# Threads of the fast tokenizers conflict with our worker processes.
export TOKENIZERS_PARALLELISM=false

#!/usr/bin/env bash
# JSUT basic5000, a test set of Nue-ASR: nothing is trained here. --model names the
# folder of a trained model, such as the one that stage 11 of another recipe writes;
# without it the data are prepared (stages 1 to 5).
set -euo pipefail
cd "$(dirname "$0")"

model=
arguments=()
while [ $# -gt 0 ]; do
    if [ "$1" = --model ]; then
        model=${2:-}
        [ -d "${model}" ] || { echo "run.sh: error: --model: no folder '${model}'" >&2; exit 1; }
        shift 2
    else
        arguments+=("$1")
        shift
    fi
done

tag=none
stages=(--stop_stage 5)
if [ -n "${model}" ]; then
    model=$(realpath "${model}")
    tag=$(basename "$(dirname "${model}")")
    mkdir -p "exp/speechllm_${tag}"
    ln -sfn "${model}" "exp/speechllm_${tag}/model"
    stages=(--skip_train true)
fi

./speechllm.sh \
    --train_set jsut_basic5000 \
    --valid_set jsut_basic5000 \
    --test_sets jsut_basic5000 \
    --train_tasks "asr:ja" \
    --test_tasks "asr:ja" \
    --train_tag "${tag}" \
    --prompts conf/prompts.yaml \
    --train_config conf/train_nue_asr.yaml \
    --inference_config conf/decode_greedy.yaml \
    "${stages[@]}" "${arguments[@]}"

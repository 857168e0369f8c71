#!/usr/bin/env bash
# Common Voice, Japanese: its test split is a test set of Nue-ASR. --model names the
# folder of a trained model to test, such as the one that stage 11 of another recipe
# writes; without it Nue-ASR's model is trained on the train split.
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

sets=(--train_set train --valid_set dev)
if [ -n "${model}" ]; then
    model=$(realpath "${model}")
    tag=$(basename "$(dirname "${model}")")
    mkdir -p "exp/speechllm_${tag}"
    ln -sfn "${model}" "exp/speechllm_${tag}/model"
    sets=(--train_set test --valid_set test --skip_train true --train_tag "${tag}")
fi

./speechllm.sh \
    "${sets[@]}" \
    --test_sets test \
    --train_tasks "asr:ja" \
    --test_tasks "asr:ja" \
    --max_wav_duration 16 \
    --token_type char \
    --prompts conf/prompts.yaml \
    --train_config conf/train_nue_asr.yaml \
    --inference_config conf/decode_greedy.yaml \
    "${arguments[@]}"

#!/usr/bin/env bash
# Asterisk's voice prompts: recognition of English and French and translation from
# English to French by one model, from human speech of well under an hour a language.
# `--tiny true` runs all stages in minutes on a handful of prompts and a few batches.
set -euo pipefail
cd "$(dirname "$0")"

tiny=false
asterisk_dir=
arguments=()
while [ $# -gt 0 ]; do
    case $1 in
        --tiny | --asterisk_dir)
            [ $# -ge 2 ] || { echo "run.sh: error: $1 needs a value" >&2; exit 1; }
            printf -v "${1#--}" '%s' "$2"
            shift 2 ;;
        *)
            arguments+=("$1")
            shift ;;
    esac
done

conf=conf
local_data_opts="${asterisk_dir:+--asterisk_dir ${asterisk_dir}}"
case ${tiny} in
    false) ;;
    true)
        conf=conf/tiny
        local_data_opts+=" --datadir data_tiny --max_prompts 24"
        set -- --datadir data_tiny --dumpdir dump_tiny --expdir exp_tiny ;;
    *) echo "run.sh: error: --tiny takes true or false, not '${tiny}'" >&2; exit 1 ;;
esac

./speechllm.sh \
    --train_set train \
    --valid_set dev \
    --test_sets test \
    --local_data_opts "${local_data_opts}" \
    --speed_perturb_factors "0.9 1.0 1.1" \
    --warmup_tasks "asr:en asr:fr" \
    --train_tasks "asr:en asr:fr st:en:fr" \
    --test_tasks "asr:en asr:fr st:en:fr" \
    --plain_transcripts true \
    --prompts conf/prompts.yaml \
    --warmup_config "${conf}/warmup.yaml" \
    --warmup_model valid.cer_ctc.ave.pth \
    --train_config "${conf}/train.yaml" \
    --inference_config "${conf}/decode.yaml" \
    "$@" "${arguments[@]}"

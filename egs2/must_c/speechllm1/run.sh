#!/usr/bin/env bash
# MuST-C: English talks transcribed and translated by one model, as in Luu and Bojar
# 2025. `--tgt_lang "de fr"` trains one model for several languages.
set -euo pipefail
cd "$(dirname "$0")"

tgt_lang=de
datadir=data
must_c_dir=
local_data_opts=
arguments=()
while [ $# -gt 0 ]; do
    case $1 in
        --tgt_lang | --datadir | --must_c_dir | --local_data_opts)
            [ $# -ge 2 ] || { echo "run.sh: error: $1 needs a value" >&2; exit 1; }
            printf -v "${1#--}" '%s' "$2"
            shift 2 ;;
        *)
            arguments+=("$1")
            shift ;;
    esac
done

tasks=asr:en
joint=
for language in ${tgt_lang}; do
    tasks+=" st:en:${language}"
    joint+=" asr_st:en:${language}"
done

./speechllm.sh \
    --train_set train \
    --valid_set dev \
    --test_sets "tst-COMMON tst-HE" \
    --lang "en_${tgt_lang// /_}" \
    --datadir "${datadir}" \
    --local_data_opts "--tgt_lang ${tgt_lang// /,} --datadir ${datadir}${must_c_dir:+ --must_c_dir ${must_c_dir}} ${local_data_opts}" \
    --train_tasks "${tasks}${joint}" \
    --prompts conf/prompts.yaml \
    --train_config conf/train_whisper_gemma2_9b.yaml \
    --inference_config conf/decode.yaml \
    "${arguments[@]}"

#!/usr/bin/env bash
# CoVoST 2: Common Voice's sentences transcribed and translated by one model.
# `--src_lang "en fr" --tgt_lang "de en"` trains one model for en-de and fr-en; the
# codes are CoVoST's own (zh-CN, sv-SE).
set -euo pipefail
cd "$(dirname "$0")"

src_lang=en
tgt_lang=de
datadir=data
covost2_dir=
local_data_opts=
arguments=()
while [ $# -gt 0 ]; do
    case $1 in
        --src_lang | --tgt_lang | --datadir | --covost2_dir | --local_data_opts)
            [ $# -ge 2 ] || { echo "run.sh: error: $1 needs a value" >&2; exit 1; }
            printf -v "${1#--}" '%s' "$2"
            shift 2 ;;
        *)
            arguments+=("$1")
            shift ;;
    esac
done

tasks=
joint=
for source in ${src_lang}; do
    tasks+=" asr:${source%%-*}"
    for target in ${tgt_lang}; do
        # from English or into English, and nothing else
        if [ "${source}" != "${target}" ] && [[ " ${source} ${target} " == *" en "* ]]; then
            tasks+=" st:${source%%-*}:${target%%-*}"
            joint+=" asr_st:${source%%-*}:${target%%-*}"
        fi
    done
done

./speechllm.sh \
    --train_set train \
    --valid_set dev \
    --test_sets test \
    --lang "${src_lang// /_}_${tgt_lang// /_}" \
    --datadir "${datadir}" \
    --local_data_opts "--src_lang ${src_lang// /,} --tgt_lang ${tgt_lang// /,} --datadir ${datadir}${covost2_dir:+ --covost2_dir ${covost2_dir}} ${local_data_opts}" \
    --train_tasks "${tasks}${joint}" \
    --prompts conf/prompts.yaml \
    --train_config conf/train_whisper_gemma2_9b.yaml \
    --inference_config conf/decode.yaml \
    "${arguments[@]}"

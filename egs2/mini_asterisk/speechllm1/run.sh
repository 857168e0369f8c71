#!/usr/bin/env bash
# Asterisk's voice prompts: recognition of English and French and translation from
# English to French by one model, from human speech of well under an hour a language.
# `--config conf/train_asr_st.yaml` trains one model that writes transcript and
# translation, from English into four languages and from these into English;
# `--config conf/train_st.yaml` the same directions without the transcript.
# `--tiny true` runs all stages in minutes on a handful of prompts and a few batches.
set -euo pipefail
cd "$(dirname "$0")"

tiny=false
asterisk_dir=
config=conf/train.yaml
arguments=()
while [ $# -gt 0 ]; do
    case $1 in
        --tiny | --asterisk_dir | --config)
            [ $# -ge 2 ] || { echo "run.sh: error: $1 needs a value" >&2; exit 1; }
            printf -v "${1#--}" '%s' "$2"
            shift 2 ;;
        *)
            arguments+=("$1")
            shift ;;
    esac
done

warmup_config=conf/warmup.yaml
inference_config=conf/decode.yaml
extra_train_sets=
local_data_opts="${asterisk_dir:+--asterisk_dir ${asterisk_dir}}"
case ${config##*/} in
    train.yaml)
        warmup_tasks="asr:en asr:fr"
        train_tasks="asr:en asr:fr st:en:fr"
        folder_suffix= ;;
    train_asr_st.yaml | train_st.yaml)
        task=${config##*/train_}
        task=${task%.yaml}
        warmup_config=conf/warmup_five.yaml
        inference_config=conf/decode_asr_st.yaml
        warmup_tasks="asr:en asr:es asr:fr asr:it asr:ru"
        train_tasks=
        # English messages are read into four languages, so fewer of them do
        extra_train_sets="train_messages_en*0.25"
        for language in es fr it ru; do
            train_tasks+="${task}:en:${language} ${task}:${language}:en "
            extra_train_sets+=" train_messages_${language}"
        done
        folder_suffix=_${task}
        local_data_opts+=" --message_languages en,es,fr,it,ru --datadir data_five"
        set -- --datadir data_five --dumpdir "dump_${task}" --expdir "exp_${task}" ;;
    *) echo "run.sh: error: --config takes conf/train.yaml, conf/train_asr_st.yaml or conf/train_st.yaml, not '${config}'" >&2; exit 1 ;;
esac
case ${tiny} in
    false) ;;
    true)
        config=conf/tiny/train.yaml
        warmup_config=conf/tiny/warmup.yaml
        inference_config=conf/tiny/decode.yaml
        local_data_opts+=" --datadir data_tiny${folder_suffix} --max_prompts 24"
        set -- --datadir "data_tiny${folder_suffix}" --dumpdir "dump_tiny${folder_suffix}" \
            --expdir "exp_tiny${folder_suffix}" ;;
    *) echo "run.sh: error: --tiny takes true or false, not '${tiny}'" >&2; exit 1 ;;
esac

./speechllm.sh \
    --train_set train \
    --extra_train_sets "${extra_train_sets}" \
    --valid_set dev \
    --test_sets test \
    --local_data_opts "${local_data_opts}" \
    --speed_perturb_factors "0.9 1.0 1.1" \
    --warmup_tasks "${warmup_tasks}" \
    --train_tasks "${train_tasks}" \
    --plain_transcripts true \
    --prompts conf/prompts.yaml \
    --warmup_config "${warmup_config}" \
    --warmup_model valid.cer_ctc.ave.pth \
    --train_config "${config}" \
    --inference_config "${inference_config}" \
    "$@" "${arguments[@]}"

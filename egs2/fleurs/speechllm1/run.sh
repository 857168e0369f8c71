#!/usr/bin/env bash
# FLEURS: one model transcribes and translates sentences read in up to 102 languages;
# from English into German unless --src_lang and --tgt_lang, or --lang, name others.
set -euo pipefail
cd "$(dirname "$0")"

src_lang=en
tgt_lang=de
lang=
fleurs_dir=
download=false
local_data_opts=
help_message="Usage: $(basename "$0") [options] [options of speechllm.sh]
Train and test a model that transcribes and translates FLEURS.
Options of the recipe:
  --src_lang \"L …\"        source languages, such as en or en_us [${src_lang}]
  --tgt_lang \"L …\"        target languages; all pairs with the source languages [${tgt_lang}]
  --lang \"L …\"            only recognise these languages, instead of the two options above
  --fleurs_dir DIR        folder that holds data/en_us, … [FLEURS in db.sh]
  --download BOOL         download in stage 1 what is missing, about 2.5 GB a source language;
                          without a folder into downloads/fleurs [${download}]
  --local_data_opts ARGS  more arguments of local/data.sh [none]"
pass_to=./speechllm.sh
. utils/parse_options.sh

if [ -n "${lang}" ]; then
    src_lang=${lang}
    tgt_lang=
fi
code() { # <language>: its code in tasks, as in speechllm/corpora/fleurs.py
    case $1 in
        cmn*) echo zh ;;
        nb*) echo no ;;
        *) echo "${1%%_*}" ;;
    esac
}
tasks=
joint=
suffix=
for source in ${src_lang}; do
    tasks+=" asr:$(code "${source}")"
    suffix+="$(code "${source}")_"
    for target in ${tgt_lang}; do
        if [ "$(code "${source}")" != "$(code "${target}")" ]; then
            tasks+=" st:$(code "${source}"):$(code "${target}")"
            joint+=" asr_st:$(code "${source}"):$(code "${target}")"
        fi
    done
done
for target in ${tgt_lang}; do suffix+="$(code "${target}")_"; done

./speechllm.sh \
    --train_set train \
    --valid_set dev \
    --test_sets test \
    --lang "${suffix%_}" \
    --local_data_opts "--src_lang ${src_lang// /,} ${tgt_lang:+--tgt_lang ${tgt_lang// /,} }--download ${download} $(as_words --fleurs_dir "${fleurs_dir}")${local_data_opts}" \
    --train_tasks "${tasks}${joint}" \
    --prompts conf/prompts.yaml \
    --train_config conf/train_whisper_small_qwen2.5_0.5b.yaml \
    --inference_config conf/decode.yaml \
    "${other_options[@]}"

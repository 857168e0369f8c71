#!/usr/bin/env bash
# MuST-C: one model transcribes and translates English talks, as in Luu and Bojar 2025.
set -euo pipefail
cd "$(dirname "$0")"

tgt_lang=de
must_c_dir=
local_data_opts=
help_message="Usage: $(basename "$0") [options] [options of speechllm.sh]
Train and test a model that transcribes and translates the English talks of MuST-C.
Options of the recipe:
  --tgt_lang \"L …\"        target languages of the model [${tgt_lang}]
  --must_c_dir DIR        folder that holds en-de, en-fr, … [MUST_C in db.sh]
  --local_data_opts ARGS  more arguments of local/data.sh [none]"
pass_to=./speechllm.sh
. utils/parse_options.sh

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
    --local_data_opts "--tgt_lang ${tgt_lang// /,} $(as_words --must_c_dir "${must_c_dir}")${local_data_opts}" \
    --train_tasks "${tasks}${joint}" \
    --prompts conf/prompts.yaml \
    --train_config conf/train_whisper_gemma2_9b.yaml \
    --inference_config conf/decode.yaml \
    "${other_options[@]}"

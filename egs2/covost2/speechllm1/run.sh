#!/usr/bin/env bash
# CoVoST 2: one model transcribes and translates sentences of Common Voice.
set -euo pipefail
cd "$(dirname "$0")"

src_lang=en
tgt_lang=de
covost2_dir=
local_data_opts=
help_message="Usage: $(basename "$0") [options] [options of speechllm.sh]
Train and test a model that transcribes and translates CoVoST 2.
Options of the recipe:
  --src_lang \"L …\"        source languages, in CoVoST's codes (zh-CN, sv-SE) [${src_lang}]
  --tgt_lang \"L …\"        target languages; of all pairs, those from or into English are
                          used: \"en fr\" and \"de en\" give en-de and fr-en [${tgt_lang}]
  --covost2_dir DIR       folder of covost_v2.en_de.tsv, … [COVOST2 in db.sh]
  --local_data_opts ARGS  more arguments of local/data.sh [none]"
pass_to=./speechllm.sh
. utils/parse_options.sh

tasks=
joint=
for source in ${src_lang}; do
    tasks+=" asr:${source%%-*}"
    for target in ${tgt_lang}; do
        # CoVoST 2 has pairs from English and into English only.
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
    --local_data_opts "--src_lang ${src_lang// /,} --tgt_lang ${tgt_lang// /,} $(as_words --covost2_dir "${covost2_dir}")${local_data_opts}" \
    --train_tasks "${tasks}${joint}" \
    --prompts conf/prompts.yaml \
    --train_config conf/train_whisper_gemma2_9b.yaml \
    --inference_config conf/decode.yaml \
    "${other_options[@]}"

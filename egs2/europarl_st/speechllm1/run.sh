#!/usr/bin/env bash
# Europarl-ST: one model transcribes and translates debates of the European Parliament,
# from English into German unless --src_lang and --tgt_lang name other languages.
set -euo pipefail
cd "$(dirname "$0")"

src_lang=en
tgt_lang=de
europarl_st_dir=
download=false
noisy=false
local_data_opts=
help_message="Usage: $(basename "$0") [options] [options of speechllm.sh]
Train and test a model that transcribes and translates the debates of Europarl-ST.
Options of the recipe:
  --src_lang \"L …\"        spoken languages: de en es fr it nl pl pt ro [${src_lang}]
  --tgt_lang \"L …\"        target languages; all pairs with the spoken ones [${tgt_lang}]
  --europarl_st_dir DIR   folder that holds v1.1, or en, de, … [EUROPARL_ST in db.sh]
  --download BOOL         download the corpus in stage 1, about 20 GB; without a folder
                          into downloads [${download}]
  --noisy BOOL            train on the set train-noisy, too [${noisy}]
  --local_data_opts ARGS  more arguments of local/data.sh [none]"
pass_to=./speechllm.sh
. utils/parse_options.sh

tasks=
joint=
for source in ${src_lang}; do
    tasks+=" asr:${source}"
    for target in ${tgt_lang}; do
        if [ "${source}" != "${target}" ]; then
            tasks+=" st:${source}:${target}"
            joint+=" asr_st:${source}:${target}"
        fi
    done
done
extra=
name=${src_lang// /_}_${tgt_lang// /_}
if "${noisy}"; then
    extra=train-noisy
    name+=_noisy
fi

./speechllm.sh \
    --train_set train \
    --extra_train_sets "${extra}" \
    --valid_set dev \
    --test_sets test \
    --lang "${name}" \
    --local_data_opts "--src_lang ${src_lang// /,} --tgt_lang ${tgt_lang// /,} --download ${download} --noisy ${noisy} $(as_words --europarl_st_dir "${europarl_st_dir}")${local_data_opts}" \
    --train_tasks "${tasks}${joint}" \
    --prompts conf/prompts.yaml \
    --train_config conf/train_whisper_small_qwen2.5_0.5b.yaml \
    --inference_config conf/decode.yaml \
    "${other_options[@]}"

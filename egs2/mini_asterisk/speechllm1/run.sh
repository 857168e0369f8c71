#!/usr/bin/env bash
# Asterisk's voice prompts: one model transcribes English and French and translates
# English into French, trained on less than an hour of human speech per language.
# run_asr_st.sh trains the model for five languages.
set -euo pipefail
cd "$(dirname "$0")"

tiny=false
asterisk_dir=
local_data_opts=
help_message="Usage: $(basename "$0") [options] [options of speechllm.sh]
Train and test a small model on Asterisk's voice prompts: English and French
recognition, English-French translation. run_asr_st.sh: five languages.
Options of the recipe [default]:
  --tiny BOOL             run all stages in minutes, on a few prompts and batches [${tiny}]
  --asterisk_dir DIR      unpacked sound and text packages [ASTERISK in db.sh]
  --local_data_opts ARGS  more arguments of local/data.sh [none]"
pass_to=./speechllm.sh
. utils/parse_options.sh

conf=conf
suffix=
data_opts=$(as_words --asterisk_dir "${asterisk_dir}")
if "${tiny}"; then
    conf=conf/tiny
    suffix=_tiny
    data_opts+=" --max_prompts 24"
fi

./speechllm.sh \
    --datadir "data${suffix}" \
    --dumpdir "dump${suffix}" \
    --expdir "exp${suffix}" \
    --train_set train \
    --valid_set dev \
    --test_sets test \
    --local_data_opts "${data_opts} ${local_data_opts}" \
    --speed_perturb_factors "0.9 1.0 1.1" \
    --warmup_tasks "asr:en asr:fr" \
    --train_tasks "asr:en asr:fr st:en:fr" \
    --plain_transcripts true \
    --prompts conf/prompts.yaml \
    --warmup_config "${conf}/warmup.yaml" \
    --warmup_model valid.cer_ctc.ave.pth \
    --first_pass_config "${conf}/first_pass.yaml" \
    --train_config "${conf}/train.yaml" \
    --inference_config "${conf}/decode.yaml" \
    "${other_options[@]}"

#!/usr/bin/env bash
# Common Voice, Japanese: its test split is a test set of Nue-ASR. It tests the model of
# another recipe, or trains Nue-ASR on the train split.
set -euo pipefail
cd "$(dirname "$0")"

model=
common_voice_dir=
local_data_opts=
help_message="Usage: $(basename "$0") [options] [options of speechllm.sh]
Test a trained model on Common Voice, Japanese. Without --model, Nue-ASR is trained on
the train split first.
Options of the recipe:
  --model DIR             model folder, such as that of stage 10 in another recipe [none]
  --common_voice_dir DIR  any release from 4.0 on, such as cv-corpus-8.0-2022-01-19 [COMMONVOICE in db.sh]
  --local_data_opts ARGS  more arguments of local/data.sh [none]"
pass_to=./speechllm.sh
. utils/parse_options.sh

[ -z "${model}" ] || [ -d "${model}" ] || fail "--model: no folder '${model}'"

./speechllm.sh \
    --train_set train \
    --valid_set dev \
    --test_sets test \
    --local_data_opts "$(as_words --common_voice_dir "${common_voice_dir}")${local_data_opts}" \
    --train_tasks "asr:ja" \
    --test_tasks "asr:ja" \
    --max_wav_duration 16 \
    --token_type char \
    --prompts conf/prompts.yaml \
    --train_config conf/train_nue_asr.yaml \
    --inference_config conf/decode_greedy.yaml \
    --download_model "${model}" \
    "${other_options[@]}"

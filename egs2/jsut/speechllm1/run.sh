#!/usr/bin/env bash
# JSUT basic5000, a test set of Nue-ASR: it tests the model of another recipe and trains
# none.
set -euo pipefail
cd "$(dirname "$0")"

model=
download_model=
jsut_dir=
local_data_opts=
help_message="Usage: $(basename "$0") [options] [options of speechllm.sh]
Test a trained model on JSUT basic5000. Without a model only the data are prepared
(stages 1 to 5).
Options of the recipe:
  --model DIR             model folder, such as that of stage 10 in another recipe [none]
  --download_model NAME   the same, or the hub id of a model [none]
  --jsut_dir DIR          folder jsut_ver1.1 [JSUT in db.sh]
  --local_data_opts ARGS  more arguments of local/data.sh [none]"
pass_to=./speechllm.sh
. utils/parse_options.sh

stages=(--stop_stage 5)
[ -z "${model}" ] || [ -d "${model}" ] || fail "--model: no folder '${model}'"
model=${model:-${download_model}}
[ -z "${model}" ] || stages=(--download_model "${model}")

./speechllm.sh \
    --train_set jsut_basic5000 \
    --valid_set jsut_basic5000 \
    --test_sets jsut_basic5000 \
    --local_data_opts "$(as_words --jsut_dir "${jsut_dir}")${local_data_opts}" \
    --train_tasks "asr:ja" \
    --test_tasks "asr:ja" \
    --prompts conf/prompts.yaml \
    --train_config conf/train_nue_asr.yaml \
    --inference_config conf/decode_greedy.yaml \
    "${stages[@]}" "${other_options[@]}"

#!/usr/bin/env bash
# LibriSpeech: recognition of English audiobooks, with the sets of ESPnet's recipe.
set -euo pipefail
cd "$(dirname "$0")"

train_set=train_960
librispeech_dir=
download=false
local_data_opts=
help_message="Usage: $(basename "$0") [options] [options of speechllm.sh]
Train and test a model on LibriSpeech.
Options of the recipe:
  --train_set NAME        train_960, train_clean_460 or train_clean_100 [${train_set}]
  --librispeech_dir DIR   the corpus, or the folder that holds it [LIBRISPEECH in db.sh]
  --download BOOL         download in stage 1 what is missing, up to 62 GB; without a folder
                          into downloads/ [${download}]
  --local_data_opts ARGS  more arguments of local/data.sh [none]"
pass_to=./speechllm.sh
. utils/parse_options.sh

case ${train_set} in
    train_960 | train_clean_460 | train_clean_100) ;;
    *) fail "--train_set takes train_960, train_clean_460 or train_clean_100, not '${train_set}'" ;;
esac

./speechllm.sh \
    --train_set "${train_set}" \
    --valid_set dev \
    --test_sets "dev_clean dev_other test_clean test_other" \
    --lang "${train_set#train_}" \
    --local_data_opts "--train_set ${train_set} --download ${download} $(as_words --librispeech_dir "${librispeech_dir}")${local_data_opts}" \
    --train_tasks "asr:en" \
    --plain_transcripts true \
    --prompts conf/prompts.yaml \
    --train_config conf/train_hubert_base_smollm2_360m.yaml \
    --inference_config conf/decode.yaml \
    "${other_options[@]}"

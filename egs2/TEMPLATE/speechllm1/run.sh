#!/usr/bin/env bash
# my_corpus: English speech recognition. Adapt the sets, tasks and configs.
set -euo pipefail
cd "$(dirname "$0")"

my_corpus_dir=
local_data_opts=
help_message="Usage: $(basename "$0") [options] [options of speechllm.sh]
Train and test a model on my_corpus.
Options of the recipe:
  --my_corpus_dir DIR     the corpus [MY_CORPUS in db.sh]
  --local_data_opts ARGS  more arguments of local/data.sh [none]"
pass_to=./speechllm.sh
. utils/parse_options.sh

./speechllm.sh \
    --train_set train \
    --valid_set dev \
    --test_sets test \
    --local_data_opts "$(as_words --my_corpus_dir "${my_corpus_dir}")${local_data_opts}" \
    --train_tasks "asr:en" \
    --prompts conf/prompts.yaml \
    --train_config conf/train.yaml \
    --inference_config conf/decode.yaml \
    "${other_options[@]}"

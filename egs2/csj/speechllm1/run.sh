#!/usr/bin/env bash
# CSJ (Corpus of Spontaneous Japanese): Nue-ASR (HuBERT, convolution bridge, GPT-NeoX)
# trained on all talks except those of the three official evaluation sets.
set -euo pipefail
cd "$(dirname "$0")"

csj_dir=
local_data_opts=
help_message="Usage: $(basename "$0") [options] [options of speechllm.sh]
Train and test Nue-ASR on CSJ, the Corpus of Spontaneous Japanese.
Options of the recipe:
  --csj_dir DIR           the corpus [CSJ in db.sh]
  --local_data_opts ARGS  more arguments of local/data.sh, such as \"--style fluent\",
                          which leaves fillers and repairs out of the text [none]"
pass_to=./speechllm.sh
. utils/parse_options.sh

./speechllm.sh \
    --train_set train \
    --valid_set dev \
    --test_sets "eval1 eval2 eval3" \
    --local_data_opts "$(as_words --csj_dir "${csj_dir}")${local_data_opts}" \
    --train_tasks "asr:ja" \
    --test_tasks "asr:ja" \
    --max_wav_duration 16 \
    --token_type char \
    --prompts conf/prompts.yaml \
    --train_config conf/train_nue_asr.yaml \
    --inference_config conf/decode_greedy.yaml \
    "${other_options[@]}"

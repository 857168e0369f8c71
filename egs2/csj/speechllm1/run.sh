#!/usr/bin/env bash
# CSJ, the Corpus of Spontaneous Japanese: Nue-ASR's model (HuBERT, convolution bridge,
# GPT-NeoX) trained on all talks but those of the three official evaluation sets.
# --local_data_opts "--style fluent" leaves fillers and repairs out of the text.
set -euo pipefail
cd "$(dirname "$0")"

./speechllm.sh \
    --train_set train \
    --valid_set dev \
    --test_sets "eval1 eval2 eval3" \
    --train_tasks "asr:ja" \
    --test_tasks "asr:ja" \
    --max_wav_duration 16 \
    --token_type char \
    --prompts conf/prompts.yaml \
    --train_config conf/train_nue_asr.yaml \
    --inference_config conf/decode_greedy.yaml \
    "$@"

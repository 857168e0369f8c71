#!/usr/bin/env bash
# ReazonSpeech: Nue-ASR (Hono et al. 2024) trained as in the paper. JSUT basic5000 and
# Common Voice are test sets too if db.sh has their folders.
set -euo pipefail
cd "$(dirname "$0")"

reazonspeech_dir=
local_data_opts=
help_message="Usage: $(basename "$0") [options] [options of speechllm.sh]
Train Nue-ASR on ReazonSpeech; test it there, and on JSUT basic5000 and Common Voice
if db.sh has JSUT and COMMONVOICE.
Options of the recipe:
  --reazonspeech_dir DIR  the download: TSV and shards [REAZONSPEECH in db.sh]
  --local_data_opts ARGS  more arguments of local/data.sh, such as \"--size tiny\" [none]"
pass_to=./speechllm.sh
. utils/parse_options.sh

. ./db.sh
test_sets="test"
[ -z "${JSUT:-}" ] || test_sets+=" jsut_basic5000"
[ ! -d "${COMMONVOICE:-/nowhere}/ja" ] || test_sets+=" common_voice_ja_test"

./speechllm.sh \
    --train_set train \
    --valid_set dev \
    --test_sets "${test_sets}" \
    --local_data_opts "$(as_words --reazonspeech_dir "${reazonspeech_dir}")${local_data_opts}" \
    --train_tasks "asr:ja" \
    --test_tasks "asr:ja" \
    --audio_format flac.ark \
    --max_wav_duration 16 \
    --token_type char \
    --prompts conf/prompts.yaml \
    --train_config conf/train_nue_asr.yaml \
    --inference_config conf/decode_greedy.yaml \
    "${other_options[@]}"

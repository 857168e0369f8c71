#!/usr/bin/env bash
# ReazonSpeech: Nue-ASR (Hono et al. 2024) trained as in its paper. JSUT basic5000 and
# Common Voice are tested too where db.sh says where they lie.
set -euo pipefail
cd "$(dirname "$0")"

. ./db.sh
test_sets="test"
[ -z "${JSUT:-}" ] || test_sets+=" jsut_basic5000"
[ ! -d "${COMMONVOICE:-/nowhere}/ja" ] || test_sets+=" common_voice_ja_test"

./speechllm.sh \
    --train_set train \
    --valid_set dev \
    --test_sets "${test_sets}" \
    --train_tasks "asr:ja" \
    --test_tasks "asr:ja" \
    --max_wav_duration 16 \
    --token_type char \
    --prompts conf/prompts.yaml \
    --train_config conf/train_nue_asr.yaml \
    --inference_config conf/decode_greedy.yaml \
    "$@"

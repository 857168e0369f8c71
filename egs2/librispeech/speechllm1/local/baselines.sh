#!/usr/bin/env bash
# After stage 5: decode and score Whisper on the test sets. Takes the options of
# ./baselines.sh (--help lists them).
set -euo pipefail
cd "$(dirname "$0")/.."
./baselines.sh --test_sets "dev_clean dev_other test_clean test_other" --nllb "" --seamless "" "$@"

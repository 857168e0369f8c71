#!/usr/bin/env bash
# After stage 5: Whisper followed by NLLB, and SeamlessM4T, on the test sets, scored
# beside the models. Options are those of ./baselines.sh --help.
set -euo pipefail
cd "$(dirname "$0")/.."
./baselines.sh --test_sets "test" "$@"

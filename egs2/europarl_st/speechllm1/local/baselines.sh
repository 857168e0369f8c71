#!/usr/bin/env bash
# After stage 5: decode and score Whisper, Whisper followed by NLLB, and SeamlessM4T on
# the test set of Europarl-ST. Takes the options of ./baselines.sh (--help lists them).
set -euo pipefail
cd "$(dirname "$0")/.."
./baselines.sh --test_sets test "$@"

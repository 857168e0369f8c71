#!/usr/bin/env bash
# Decode and score the baseline; see the usage below.
set -euo pipefail
cd "$(dirname "$0")/.."
help_message="Usage: local/baselines.sh
After stage 5: decodes and scores Whisper-base's own decoder, zero-shot, with the language
given, on the test set: transcripts, and translations into English. Scores go into
exp/RESULTS.md. It takes no options."
. utils/parse_options.sh
. ./path.sh

if [ ! -f dump/raw/test/text ]; then
    echo "local/baselines.sh: error: no file dump/raw/test/text; run ./run.sh --stop_stage 5 first" >&2
    exit 1
fi
examples=dump/examples/test_whisper
whisper=exp/whisper_base/decode_greedy/test
python3 -m speechllm.bin.make_examples --input dump/raw/test \
    --tasks "asr_st:cs:en asr_st:nl:en" --output "${examples}" --keep_empty
python3 -m speechllm.bin.baseline whisper --examples "${examples}" --output "${whisper}"
python3 -m speechllm.bin.score --examples "${examples}" --decode_dir "${whisper}"
python3 -m speechllm.bin.report --exp_root exp --output exp/RESULTS
cat exp/RESULTS.md

#!/usr/bin/env bash
# After ./run.sh: decode and score the baselines of the README's table on the same test
# prompts. Scores go into exp/RESULTS.md.
set -euo pipefail
cd "$(dirname "$0")/.."
help_message="Usage: local/baselines.sh
Decodes and scores the baselines of the README's table, after ./run.sh; takes no options."
. utils/parse_options.sh
. utils/locks.sh
. ./path.sh

exp=exp/speechllm_train
decode=${exp}/decode/test
if [ ! -f "${decode}/text" ]; then
    fail "no file ${decode}/text; run ./run.sh --stage 12 --stop_stage 13 first"
fi

# Whisper's own decoder, zero-shot, with the language given.
lock dump exp/whisper_base/decode_greedy
python3 -m speechllm.bin.make_examples --input dump/raw/test --tasks "asr:en asr:fr" \
    --output dump/examples/test_asr
whisper=exp/whisper_base/decode_greedy/test
python3 -m speechllm.bin.baseline whisper --examples dump/examples/test_asr --output "${whisper}"
python3 -m speechllm.bin.score --examples dump/examples/test_asr --decode_dir "${whisper}"
unlock

# The cascade: our model's transcripts, translated by the same LLM as text.
cascade=exp/cascade/decode_beam4/test
lock exp/cascade/decode_beam4
python3 -m speechllm.bin.baseline llm --model "${exp}/model" --beam_size 4 --batch_size 16 \
    --train_examples dump/examples/train_sp --transcripts "${decode}" \
    --examples dump/examples/test --output "${cascade}"
python3 -m speechllm.bin.score --examples dump/examples/test --decode_dir "${cascade}"
unlock

lock exp/log
python3 -m speechllm.bin.report --exp_root exp --output exp/RESULTS
cat exp/RESULTS.md

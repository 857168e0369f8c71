#!/usr/bin/env bash
# After ./run.sh: the systems that the README's table stands beside, on the same test
# prompts, scored into the same exp/RESULTS.md.
set -euo pipefail
cd "$(dirname "$0")/.."
. ./path.sh

exp=exp/speechllm_train
decode=${exp}/decode_decode/test

# Whisper's own decoder, zero-shot, with the language told.
python3 -m speechllm.bin.make_examples --input dump/raw/test --tasks "asr:en asr:fr" \
    --output dump/examples/test_asr
whisper=exp/whisper_base/decode_greedy/test
python3 -m speechllm.bin.baseline whisper --examples dump/examples/test_asr --output "${whisper}"
python3 -m speechllm.bin.score --examples dump/examples/test_asr --decode_dir "${whisper}"

# The cascade: our recognition, then the same LLM translating text.
cascade=exp/cascade/decode_beam4/test
python3 -m speechllm.bin.baseline llm --model "${exp}/model" --beam_size 4 --batch_size 16 \
    --train_examples dump/examples/train_sp --transcripts "${decode}" \
    --examples dump/examples/test --output "${cascade}"
python3 -m speechllm.bin.score --examples dump/examples/test --decode_dir "${cascade}"

python3 -m speechllm.bin.report --exp_root exp --output exp/RESULTS
cat exp/RESULTS.md

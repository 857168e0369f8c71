#!/usr/bin/env bash
# After ./run.sh: decode and score the baselines of the README's table on the same test
# prompts. Scores go into exp/RESULTS.md.
set -euo pipefail
cd "$(dirname "$0")/.."
. ./path.sh

exp=exp/speechllm_train
decode=${exp}/decode/test
if [ ! -f "${decode}/text" ]; then
    echo "local/baselines.sh: error: no file ${decode}/text; run ./run.sh --stage 12 --stop_stage 13 first" >&2
    exit 1
fi

# Whisper's own decoder, zero-shot, with the language given.
python3 -m speechllm.bin.make_examples --input dump/raw/test --tasks "asr:en asr:fr" \
    --output dump/examples/test_asr
whisper=exp/whisper_base/decode_greedy/test
python3 -m speechllm.bin.baseline whisper --examples dump/examples/test_asr --output "${whisper}"
python3 -m speechllm.bin.score --examples dump/examples/test_asr --decode_dir "${whisper}"

# The cascade: our model's transcripts, translated by the same LLM as text.
cascade=exp/cascade/decode_beam4/test
python3 -m speechllm.bin.baseline llm --model "${exp}/model" --beam_size 4 --batch_size 16 \
    --train_examples dump/examples/train_sp --transcripts "${decode}" \
    --examples dump/examples/test --output "${cascade}"
python3 -m speechllm.bin.score --examples dump/examples/test --decode_dir "${cascade}"

python3 -m speechllm.bin.report --exp_root exp --output exp/RESULTS
cat exp/RESULTS.md

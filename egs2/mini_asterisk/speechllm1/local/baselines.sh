#!/usr/bin/env bash
# After ./run.sh: decode and score the baselines of the README's table on the same test
# prompts. Scores go into exp/RESULTS.md.
set -euo pipefail
cd "$(dirname "$0")/.."
finetune_minutes=0
help_message="Usage: local/baselines.sh [options]
Decodes and scores the baselines of the README's table, after ./run.sh.
  --finetune_minutes N  fine-tune one more Whisper, for N minutes of wall-clock time; 0:
                        only the first pass of stage 8 is a baseline [${finetune_minutes}]"
. utils/parse_options.sh
. utils/locks.sh
. ./path.sh

exp=exp/speechllm_train
decode=${exp}/decode/test
if [ ! -f "${decode}/text" ]; then
    fail "no file ${decode}/text; run ./run.sh --stage 12 --stop_stage 13 first"
fi

# Whisper's own decoder with the language given: zero-shot, and fine-tuned (the first pass).
lock dump
python3 -m speechllm.bin.make_examples --input dump/raw/test --tasks "asr:en asr:fr" \
    --output dump/examples/test_asr --keep_empty
unlock
decode_whisper() { # <system> <model>
    local search output
    for search in "greedy 1" "beam5 5"; do
        output=exp/$1/decode_${search% *}
        lock "${output}"
        python3 -m speechllm.bin.baseline whisper --model "$2" --beam_size "${search#* }" \
            --examples dump/examples/test_asr --output "${output}/test"
        python3 -m speechllm.bin.score --examples dump/examples/test_asr \
            --decode_dir "${output}/test"
        unlock
    done
}
decode_whisper whisper_base openai/whisper-base
decode_whisper whisper_finetuned exp/first_pass
if [ "${finetune_minutes}" != 0 ]; then
    finetuned=exp/whisper_finetuned_${finetune_minutes}_minutes
    lock "${finetuned}/model"
    python3 -m speechllm.bin.finetune_whisper --examples dump/examples/train_sp \
        --valid dump/examples/dev --output "${finetuned}/model" --epochs 1000 \
        --max_minutes "${finetune_minutes}"
    unlock
    decode_whisper "${finetuned#exp/}" "${finetuned}/model"
fi

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

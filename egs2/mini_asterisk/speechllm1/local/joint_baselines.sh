#!/usr/bin/env bash
# After ./run_asr_st.sh: decode and score the baselines of its table on the same test
# prompts. Scores go into exp_asr_st/RESULTS.md and exp_st/RESULTS.md.
set -euo pipefail
cd "$(dirname "$0")/.."
help_message="Usage: local/joint_baselines.sh
Decodes and scores the baselines of the table of ./run_asr_st.sh, after it; takes no options."
. utils/parse_options.sh
. utils/locks.sh
. ./path.sh

exp=exp_asr_st/speechllm_train_asr_st
decode=${exp}/decode_asr_st/test
test=dump_asr_st/examples/test
if [ ! -f "${decode}/text" ]; then
    fail "no file ${decode}/text; run ./run_asr_st.sh --stage 12 --stop_stage 13 first"
fi
score() { # <decode dir>
    python3 -m speechllm.bin.score --examples "${test}" --decode_dir "$1"
}

# The cascade: the joint model's transcripts, translated by the same LLM as text, which is
# trained for one epoch on the text pairs.
cascade=exp_asr_st/cascade/decode_beam4/test
lock exp_asr_st/cascade/decode_beam4
python3 -m speechllm.bin.baseline llm --model "${exp}/model" --beam_size 4 --batch_size 16 \
    --epochs 1 --learning_rate 1e-4 --train_examples dump_asr_st/examples/train_sp \
    --transcripts "${decode}" --examples "${test}" --output "${cascade}"
score "${cascade}"
unlock

# Whisper's own decoder, as pretrained and as fine-tuned in stage 8: transcript and
# translation, into English only.
tasks="asr_st:es:en asr_st:fr:en asr_st:it:en asr_st:ru:en"
test=dump_asr_st/examples/test_into_en
lock dump_asr_st
python3 -m speechllm.bin.make_examples --input dump_asr_st/raw/test --tasks "${tasks}" \
    --output "${test}" --keep_empty
unlock
decode_whisper() { # <system> <model> <search> <beam size>
    local output=exp_asr_st/$1/decode_$3
    lock "${output}"
    python3 -m speechllm.bin.baseline whisper --model "$2" --beam_size "$4" \
        --examples "${test}" --output "${output}/test"
    score "${output}/test"
    unlock
}
decode_whisper whisper_base openai/whisper-base greedy 1
decode_whisper whisper_finetuned exp_asr_st/first_pass greedy 1

# The joint model without a first pass.
./run_asr_st.sh --stage 12 --stop_stage 13 --inference_tag no_first_pass \
    --inference_args "--first_pass_beam_size 0"

# The translation-only model, from the same warm-up (and its CTC vocabulary).
./run_asr_st.sh --joint false --stage 2 --skip_stages 8 \
    --init_param exp_asr_st/speechllm_warmup_five/valid.cer_ctc.ave.pth

# Last, since a text that repeats itself takes Whisper's beam search minutes.
decode_whisper whisper_base openai/whisper-base beam5 5
decode_whisper whisper_finetuned exp_asr_st/first_pass beam5 5

lock exp_asr_st/log
python3 -m speechllm.bin.report --exp_root exp_asr_st --output exp_asr_st/RESULTS
cat exp_asr_st/RESULTS.md
unlock

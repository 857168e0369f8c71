#!/usr/bin/env bash
# After ./run.sh --config conf/train_asr_st.yaml: the systems that its table stands
# beside, on the same test prompts, in exp_asr_st/RESULTS.md and exp_st/RESULTS.md.
set -euo pipefail
cd "$(dirname "$0")/.."
. ./path.sh

exp=exp_asr_st/speechllm_train_asr_st
test=dump_asr_st/examples/test
score() { # <decode dir>
    python3 -m speechllm.bin.score --examples "${test}" --decode_dir "$1"
}

# The cascade: the joint model's transcripts, then the same LLM translating text. It
# reads every pair of texts once.
cascade=exp_asr_st/cascade/decode_beam4/test
python3 -m speechllm.bin.baseline llm --model "${exp}/model" --beam_size 4 --batch_size 16 \
    --epochs 1 --learning_rate 1e-4 --train_examples dump_asr_st/examples/train_sp \
    --transcripts "${exp}/decode_decode_asr_st/test" --examples "${test}" --output "${cascade}"
score "${cascade}"

# Whisper's own decoder: transcript and translation, into English only.
tasks="asr_st:es:en asr_st:fr:en asr_st:it:en asr_st:ru:en"
test=dump_asr_st/examples/test_into_en
python3 -m speechllm.bin.make_examples --input dump_asr_st/raw/test --tasks "${tasks}" \
    --output "${test}"
whisper=exp_asr_st/whisper_base/decode_greedy/test
python3 -m speechllm.bin.baseline whisper --examples "${test}" --output "${whisper}"
score "${whisper}"

python3 -m speechllm.bin.report --exp_root exp_asr_st --output exp_asr_st/RESULTS
cat exp_asr_st/RESULTS.md

# The model of translations alone, from the same warm-up (and its CTC vocabulary).
./run.sh --config conf/train_st.yaml --stage 2 --skip_stages 8 \
    --init_param exp_asr_st/speechllm_warmup_five/valid.cer_ctc.ave.pth

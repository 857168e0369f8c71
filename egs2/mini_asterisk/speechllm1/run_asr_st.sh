#!/usr/bin/env bash
# Asterisk's voice prompts in five languages: one model writes transcript and
# translation, from English into Spanish, French, Italian and Russian, and back.
set -euo pipefail
cd "$(dirname "$0")"

joint=true
tiny=false
asterisk_dir=
local_data_opts=
help_message="Usage: $(basename "$0") [options] [options of speechllm.sh]
Train and test a small model on Asterisk's voice prompts that writes transcript and
translation, from English into Spanish, French, Italian and Russian, and back.
Options of the recipe [default]:
  --joint BOOL            write transcript and translation; false: the translation only [${joint}]
  --tiny BOOL             run all stages in minutes, on a few prompts and batches [${tiny}]
  --asterisk_dir DIR      unpacked sound and text packages [ASTERISK in db.sh]
  --local_data_opts ARGS  more arguments of local/data.sh [none]"
pass_to=./speechllm.sh
. utils/parse_options.sh

task=asr_st
"${joint}" || task=st
train_tasks=
# Whisper transcribes, and translates into English. A third of the examples of three speeds.
first_pass_tasks="asr:en*0.33 "
# Each English message has four translations, so a quarter of the messages suffices.
extra_train_sets="train_messages_en*0.25"
for language in es fr it ru; do
    train_tasks+="${task}:en:${language} ${task}:${language}:en "
    first_pass_tasks+="asr:${language}*0.33 st:${language}:en*0.33 "
    extra_train_sets+=" train_messages_${language}"
done

datadir=data_five
suffix=_${task}
warmup_config=conf/warmup_five.yaml
train_config=conf/train_${task}.yaml
first_pass_config=conf/first_pass.yaml
inference_config=conf/decode_${task}.yaml
data_opts="--message_languages en,es,fr,it,ru $(as_words --asterisk_dir "${asterisk_dir}")"
if "${tiny}"; then
    datadir=data_tiny_${task}
    suffix=_tiny_${task}
    warmup_config=conf/tiny/warmup.yaml
    train_config=conf/tiny/train.yaml
    first_pass_config=conf/tiny/first_pass.yaml
    inference_config=conf/tiny/decode.yaml
    data_opts+=" --max_prompts 24"
fi
"${joint}" || first_pass_config=

./speechllm.sh \
    --datadir "${datadir}" \
    --dumpdir "dump${suffix}" \
    --expdir "exp${suffix}" \
    --train_set train \
    --extra_train_sets "${extra_train_sets}" \
    --valid_set dev \
    --test_sets test \
    --local_data_opts "${data_opts} ${local_data_opts}" \
    --speed_perturb_factors "0.9 1.0 1.1" \
    --warmup_tasks "asr:en asr:es asr:fr asr:it asr:ru" \
    --train_tasks "${train_tasks}" \
    --plain_transcripts true \
    --prompts conf/prompts.yaml \
    --warmup_config "${warmup_config}" \
    --warmup_model valid.cer_ctc.ave.pth \
    --first_pass_config "${first_pass_config}" \
    --first_pass_tasks "${first_pass_tasks}" \
    --train_config "${train_config}" \
    --inference_config "${inference_config}" \
    "${other_options[@]}"

#!/usr/bin/env bash
# Fish Fillets: one model transcribes the acted Czech and Dutch dialogues of a game and
# translates them into English, from three hours of speech that anyone can download.
set -euo pipefail
cd "$(dirname "$0")"

src_lang="cs nl"
tgt_lang=en
joint=true
tiny=false
fillets_dir=
local_data_opts=
help_message="Usage: $(basename "$0") [options] [options of speechllm.sh]
Train and test a small model that transcribes and translates the dialogues of Fish Fillets.
Options of the recipe [default]:
  --src_lang \"L …\"        spoken languages, cs or nl or both [${src_lang}]
  --tgt_lang \"L …\"        languages of the translation: bg cs de en es fr it nl pl ru sv [${tgt_lang}]
  --joint BOOL            write transcript and translation in one output; false: one task
                          for each [${joint}]
  --tiny BOOL             run all stages in minutes, on a few utterances and batches [${tiny}]
  --fillets_dir DIR       unpacked packages [FILLETS in db.sh]
  --local_data_opts ARGS  more arguments of local/data.sh [none]"
pass_to=./speechllm.sh
. utils/parse_options.sh

recognition=
train_tasks=
for source in ${src_lang}; do
    recognition+=" asr:${source}"
    "${joint}" || train_tasks+=" asr:${source}"
    for target in ${tgt_lang}; do
        [ "${source}" != "${target}" ] || continue
        if "${joint}"; then
            train_tasks+=" asr_st:${source}:${target}"
        else
            train_tasks+=" st:${source}:${target}"
        fi
    done
done

conf=conf
suffix=
data_opts=$(as_words --fillets_dir "${fillets_dir}")
if "${tiny}"; then
    conf=conf/tiny
    suffix=_tiny
    data_opts+="--max_utterances 24 "
fi
# Folders of another choice of languages or tasks are separate; the data are the same.
choice=
if [ "${src_lang} ${tgt_lang}" != "cs nl en" ]; then
    choice=_${src_lang// /_}_${tgt_lang// /_}
fi
"${joint}" || choice+=_separate

./speechllm.sh \
    --datadir "data${suffix}${choice}" \
    --dumpdir "dump${suffix}${choice}" \
    --expdir "exp${suffix}${choice}" \
    --train_set train \
    --valid_set dev \
    --test_sets test \
    --local_data_opts "${data_opts}${local_data_opts}" \
    --speed_perturb_factors "0.9 1.0 1.1" \
    --warmup_tasks "${recognition}" \
    --train_tasks "${train_tasks}" \
    --plain_transcripts true \
    --prompts conf/prompts.yaml \
    --warmup_config "${conf}/warmup.yaml" \
    --warmup_model valid.cer_ctc.ave.pth \
    --train_config "${conf}/train.yaml" \
    --inference_config "${conf}/decode.yaml" \
    "${other_options[@]}"

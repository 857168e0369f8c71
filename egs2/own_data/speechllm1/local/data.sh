#!/usr/bin/env bash
# Prepare ${datadir}/{train,dev,test} of your own data; print what was found, warnings, and
# the cost of the training. ${datadir}/REPORT.md and warnings.tsv keep the first two.
# shellcheck disable=SC2034  # options are read by their names
set -euo pipefail

datadir=data
data=
lang=en
tgt_lang=
align_model=
train_config=conf/train.yaml
warmup_config=conf/warmup.yaml
max_seconds=30
dev_share=
test_share=
speaker_from=
audio_dir=
audio_column=
text_column=
translation_column=
speaker_column=
split_column=
language_column=
duration_column=
start_column=
end_column=
help_message="Usage: local/data.sh [options]
  --datadir DIR           output folder of the sets [${datadir}]
  --data PATH             folder or file with your data [OWN_DATA in db.sh]
  --lang L                spoken language [${lang}]
  --tgt_lang L            language of the translations [none]
  --align_model DIR       model with a CTC branch, for long recordings [none]
  --train_config FILE     config whose cost is estimated [${train_config}]
  --warmup_config FILE    config of the warm-up, or '' [${warmup_config}]
  --max_seconds S         longest utterance [${max_seconds}]
  --dev_share X, --test_share X  shares of the speech [0.1, at most 2 hours]
  --speaker_from WHAT     folder or name [from the data]
  --audio_dir DIR         folder that paths in a manifest are relative to [its own]
  --<role>_column NAME    column of a manifest, of the role audio, text, translation, speaker,
                          split, language, duration, start or end [guessed]"
. utils/parse_options.sh
find_corpus --data "${data}" OWN_DATA "or file with your data"

gpu=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits 2> /dev/null | head -n 1 || true)
if [[ ${gpu} =~ ^[0-9]+$ ]]; then
    device=cuda
    speed=(--gpu "$((gpu / 1024))")
else
    device=cpu
    # A CPU core does about 0.1 * 10^12 operations a second in a training.
    speed=(--tflops "$(awk -v cores="$(nproc)" 'BEGIN { print cores / 10 }')")
fi
reading=(--data "${corpus_dir}" --lang "${lang}" --max_seconds "${max_seconds}")
for option in tgt_lang speaker_from audio_dir {audio,text,translation,speaker,split,language,duration,start,end}_column; do
    [ -z "${!option}" ] || reading+=("--${option}" "${!option}")
done
sets=()
if [ -n "${align_model}" ]; then
    python3 -m speechllm.bin.align_recordings "${reading[@]}" --model "${align_model}" \
        --output "${datadir}/alignments.jsonl" --device "${device}"
    sets+=(--alignments "${datadir}/alignments.jsonl")
fi
for option in dev_share test_share; do
    [ -z "${!option}" ] || sets+=("--${option}" "${!option}")
done
python3 -m speechllm.bin.prepare_data own_data "${reading[@]}" "${sets[@]}" --output "${datadir}"

hours=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["hours"]["train"])' "${datadir}/own_data.json")
for config in "${warmup_config}" "${train_config}"; do
    [ -n "${config}" ] || continue
    echo
    echo "cost of ${config} (speechllm estimate --config ${config} --hours ${hours} ${speed[*]}):"
    python3 -m speechllm.cli estimate --config "${config}" --hours "${hours}" "${speed[@]}" ||
        echo "warning: no estimate, or the training does not fit into the memory; see above"
done
echo

#!/usr/bin/env bash
# Prepare ${datadir}/{train,dev,test} of your own data; print what was found, warnings, and
# the cost of the training. ${datadir}/REPORT.md and warnings.tsv keep the first two.
set -euo pipefail

. local/options.sh
datadir=data
help_message="Usage: local/data.sh [options]
  --datadir DIR           output folder of the sets [${datadir}]
${DATA_HELP}"
. utils/parse_options.sh
train_config=${train_config:-conf/train.yaml}
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
data=${corpus_dir}
reading=() sets=() changes=()
arguments() { # <array> <option …>: add the options that have a value
    local name
    local -n words=$1
    for name in "${@:2}"; do
        [ -z "${!name}" ] || words+=("--${name}=${!name}")
    done
}
arguments reading "${READING_OPTIONS[@]}"
arguments sets "${SET_OPTIONS[@]}"
arguments changes "${COST_OPTIONS[@]}"
if [ -n "${align_model}" ]; then
    python3 -m speechllm.bin.align_recordings "${reading[@]}" --model "${align_model}" \
        --output "${datadir}/alignments.jsonl" --device "${device}"
    sets+=(--alignments "${datadir}/alignments.jsonl")
fi
python3 -m speechllm.bin.prepare_data own_data "${reading[@]}" "${sets[@]}" --output "${datadir}"

hours=$(python3 -c 'import json, sys; print("%.4g" % json.load(open(sys.argv[1]))["hours"]["train"])' "${datadir}/own_data.json")
for config in "${warmup_config}" "${train_config}"; do
    [ -n "${config}" ] || continue
    estimate=(estimate --config "${config}" --hours "${hours}" "${speed[@]}" "${changes[@]}")
    echo
    echo "cost of ${config} (speechllm$(printf ' %q' "${estimate[@]}")):"
    python3 -m speechllm.cli "${estimate[@]}" ||
        echo "warning: no estimate, or the training does not fit into the memory; see above"
done
[ -z "${first_pass_config}" ] ||
    printf '\nnot included: fine-tuning of Whisper (%s), with this limit:\n%s\n' \
        "${first_pass_config}" "$(grep -E '^(epochs|max_minutes):' "${first_pass_config}")"
echo

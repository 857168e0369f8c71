#!/usr/bin/env bash
# Your own data: from a folder, manifest, Kaldi dir or CutSet to a model and its scores.
set -euo pipefail
started=${PWD}
cd "$(dirname "$0")"

. local/options.sh
data_name=
init_param=
local_data_opts=
help_message="Usage: $(basename "$0") [options] [options of speechllm.sh]
Train and test a model on your own recordings, in one command.
Options of the recipe [default]:
${DATA_HELP}
  --data_name NAME        names the folders data_NAME, dump_NAME, exp_NAME [file name of the data,
                          with --tgt_lang L also _L]
  --init_param PATH       adapt this model: model folder or checkpoint [none]
  --local_data_opts ARGS  more arguments of local/data.sh [none]"
pass_to=./speechllm.sh
. utils/parse_options.sh

absolute() { # <path>: print it, relative to the folder where run.sh was started
    if [[ $1 == /* || -z $1 ]] || { [ ! -e "${started}/$1" ] && [ -e "$1" ]; }; then
        echo "$1"
    else
        echo "${started}/$1"
    fi
}

. ./db.sh
data=${data:-${OWN_DATA:-}}
if [ -z "${data_name}" ]; then
    [ -n "${data}" ] || fail "--data is needed: the folder or file with your data; --help lists the options"
    data_name=$(basename "${data}")
    data_name=${data_name%%.*}
    # A model that also translates is another one.
    data_name+=${tgt_lang:+_${tgt_lang}}
    data_name=${data_name//[^A-Za-z0-9_]/_}
fi
[[ ${data_name} =~ ^[A-Za-z0-9_]+$ ]] || fail "--data_name takes letters, digits and _, not '${data_name}'"
for code in ${lang} ${tgt_lang}; do
    grep -Eq "^  \"?${code}\"?: " conf/prompts.yaml ||
        fail "conf/prompts.yaml has no language '${code}'; give a two-letter code, or add a line for it there"
done

tasks=asr:${lang}
[ -z "${tgt_lang}" ] || tasks+=" st:${lang}:${tgt_lang}"

adapting=()
if [ -n "${init_param}" ]; then
    # The name of a model on the hub stays as it is.
    path=$(absolute "${init_param}")
    [ ! -e "${path}" ] || init_param=${path}
    adapting=(--init_param "${init_param}")
    train_config=${train_config:-conf/adapt.yaml}
    warmup_config=
    # The CTC labels of the model are in its folder, or in the one that it was exported to.
    for folder in "${init_param}" "$(dirname "${init_param}")" "$(dirname "${init_param}")/model"; do
        if [ -f "${folder}/tokens.txt" ]; then
            adapting+=(--token_list "${folder}")
            break
        fi
    done
fi
train_config=${train_config:-conf/train.yaml}

for ((n = 0; n < ${#other_options[@]}; n += 2)); do
    option=${other_options[n]#--} option=${option//-/_}
    [[ " ${COST_OPTIONS[*]} " != *" ${option} "* ]] || printf -v "${option}" '%s' "${other_options[n + 1]}"
done

# Values with spaces reach local/data.sh in a file.
mkdir -p "data_${data_name}"
options=data_${data_name}/options.sh
data=$(absolute "${data}")
align_model=$(absolute "${align_model}")
audio_dir=$(absolute "${audio_dir}")
for option in "${DATA_OPTIONS[@]}"; do
    printf '%s=%q\n' "${option}" "${!option}"
done > "${options}.new"
mv "${options}.new" "${options}"

./speechllm.sh \
    --datadir "data_${data_name}" \
    --dumpdir "dump_${data_name}" \
    --expdir "exp_${data_name}" \
    --train_set train \
    --valid_set dev \
    --test_sets test \
    --local_data_opts "--config ${options} ${local_data_opts}" \
    --speed_perturb_factors "0.9 1.0 1.1" \
    --max_wav_duration "${max_seconds}" \
    --train_tasks "${tasks}" \
    --plain_transcripts true \
    --prompts conf/prompts.yaml \
    --warmup_config "${warmup_config}" \
    --warmup_model valid.cer_ctc.ave.pth \
    --first_pass_config "${first_pass_config}" \
    --train_config "${train_config}" \
    --inference_config conf/decode.yaml \
    "${adapting[@]}" \
    "${other_options[@]}"

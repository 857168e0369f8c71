#!/usr/bin/env bash
# The ablations of Nue-ASR (Hono et al. 2024, arXiv 2312.03668) in small, on the English
# prompts: bridges with and without CTC loss, tuning of the LLM, frozen or trained encoder.
# Writes exp/ABLATIONS.md after each row. A re-run resumes and skips finished rows.
set -euo pipefail
cd "$(dirname "$0")/.."

rows=
tiny=false
asterisk_dir=
all="ctc conv conv_ctc removal removal_ctc averaging averaging_ctc llm_frozen llm_lora llm_random encoder_frozen"
help_message="Usage: local/ablations.sh [options] [options of run.sh, such as --ngpu 1 or --nj 4]
Trains and tests each row of the table of ablations, at most 20 minutes a row on two
cores, and writes exp/ABLATIONS.md (with --tiny, exp/ABLATIONS_tiny.md).
Options [default]:
  --rows \"NAME …\"     rows to run, after ctc, from which all are initialised [${all}]
  --tiny BOOL         run all rows in minutes, on a few prompts and batches [${tiny}]
  --asterisk_dir DIR  unpacked sound and text packages [ASTERISK in db.sh]"
pass_to=./run.sh
. utils/parse_options.sh

suffix=
"${tiny}" && suffix=_tiny
exp=exp/ablations${suffix}
report=exp/ABLATIONS${suffix}.md

# Arguments of each row's training: bridge, CTC loss, LLM and encoder. Parts trained from
# random weights have the learning rate of conf/ablation.yaml; pretrained ones less.
llm="--llm_conf tuning=full --lr_scales llm=0.1"
encoder="--encoder_conf trainable_layers=2 --lr_scales encoder=0.1"
base="--model_conf ctc_weight=0.0 ${llm} ${encoder}"
with_ctc="--model_conf ctc_weight=0.3 ${llm} ${encoder}"
removal="--bridge ctc_compression --bridge_conf mode=remove"
averaging="--bridge ctc_compression --bridge_conf mode=average"
convolution="--bridge convolution --model_conf ctc_weight=0.0"
row_args() { # <row>: print its arguments
    case $1 in
        ctc) ;;
        conv) echo "${convolution} ${base}" ;;
        conv_ctc) echo "--bridge convolution ${with_ctc}" ;;
        removal) echo "${removal} ${base}" ;;
        removal_ctc) echo "${removal} ${with_ctc}" ;;
        averaging) echo "${averaging} ${base}" ;;
        averaging_ctc) echo "${averaging} ${with_ctc}" ;;
        llm_frozen) echo "${convolution} --llm_conf tuning=frozen ${encoder}" ;;
        llm_lora) echo "${convolution} --llm_conf tuning=lora --lr_scales llm=0.6 ${encoder}" ;;
        llm_random)
            echo "${convolution} --llm_conf tuning=full --llm_conf random_init=true" \
                "--lr_scales llm=0.5 ${encoder}" ;;
        encoder_frozen) echo "${convolution} ${llm} --encoder_conf trainable_layers=0" ;;
        *) return 1 ;;
    esac
}
for row in ${rows}; do
    row_args "${row}" > /dev/null || fail "--rows: no row '${row}'; there are: ${all}"
done

run() { # <options of run.sh …>
    ./run.sh --tiny "${tiny}" --asterisk_dir "${asterisk_dir}" --train_tasks asr:en \
        --datadir "data_ablations${suffix}" --dumpdir "dump_ablations${suffix}" \
        --expdir "${exp}" --warmup_config "" --first_pass_config "" \
        --inference_config conf/ablation_decode.yaml "${other_options[@]}" "$@"
}
table() { # write the table of the rows so far
    local systems
    read -ra systems <<< "${all}"
    python3 -m speechllm.bin.ablation_table --exp_root "${exp}" --systems "${systems[@]}" \
        --compare_with conv --output "${report}"
}
elapsed() { # <folder>: add the seconds of an attempt that has ended to its file
    [ -f "$1/attempt" ] || return 0
    local last begin
    begin=$(< "$1/attempt")
    # Arithmetic would run what is not a number.
    [[ ${begin} =~ ^[0-9]{1,12}$ ]] || fail "$1/attempt is damaged; remove it"
    # An attempt that was killed ended with the last file that it wrote.
    last=$(find "$1" -type f -printf '%T@\n' | sort -n | tail -n 1)
    echo $((${last%.*} - 10#${begin})) >> "$1/seconds"
    rm "$1/attempt"
}
run_row() { # <row>
    local dir=${exp}/$1 options=() words
    words=$(row_args "$1")
    if [ -f "${dir}/finished" ]; then
        echo "$1: finished"
        return
    fi
    if "${tiny}"; then
        words+=" --max_epoch 1 --num_iters_per_epoch 2 --encoder_conf layer=2"
    fi
    if [ "$1" = ctc ]; then
        options=(--train_config conf/ablation_ctc.yaml --inference_model valid.cer_ctc.ave.pth
            --speechllm_stats_dir "${exp}/speechllm_stats_ctc")
    else
        options=(--train_config conf/ablation.yaml
            --init_param "${exp}/ctc/valid.cer_ctc.ave.pth")
    fi
    mkdir -p "${dir}"
    elapsed "${dir}"
    date +%s > "${dir}/attempt"
    run --stage 6 --skip_stages 11 --speechllm_exp "${dir}" --train_args "${words}" "${options[@]}"
    touch "${dir}/finished"
    elapsed "${dir}"
    table
}

. ./path.sh
if [ ! -f "data_ablations${suffix}/token_list/char/tokens.txt" ]; then
    run --stop_stage 5 --train_config conf/ablation.yaml
fi
run_row ctc
for row in ${rows:-${all#ctc }}; do
    [ "${row}" = ctc ] || run_row "${row}"
done
table
cat "${report}"

# shellcheck shell=bash disable=SC2154,SC2034  # reads and sets variables of speechllm.sh
# Stages 7 to 9 of speechllm.sh: lengths, training, first pass, configs with --encoder and --llm. A
# phase is warmup (stage 8), train or second (9).

replace_models() { # use configs with --encoder and --llm in this and the next stages
    [ -n "${encoder}${llm}" ] || return 0
    local phase config dir arguments=() line
    for phase in ${phases}; do
        config=${phase}_config
        dir=${phase}_exp
        [ "${!config}" != "${!dir}/train_config.yaml" ] || return 0  # an earlier stage did
        arguments+=(--config "${!config}" "${!dir}/train_config.yaml")
        printf -v "${config}" '%s' "${!dir}/train_config.yaml"
    done
    [ -z "${encoder}" ] || arguments+=(--encoder "${encoder}")
    [ -z "${llm}" ] || arguments+=(--llm "${llm}")
    prepare "${final_exp}/log/replace_models.log" \
        python3 -m speechllm.bin.replace_models "${arguments[@]}"
    while read -r line; do
        log "Stage ${current}: ${line}"
    done < <(grep -a ' in place of ' "${final_exp}/log/replace_models.log" || true)
}
data_arguments() { # <phase> <train or valid>: add its files to ${arguments}
    local phase=$1 kind=$2 set=${valid_set} dir
    local train=${phase}_train_set
    [ "${kind}" = valid ] || set=${!train}
    dir=$(examples "${phase}" "${set}")
    local flag=--${kind}_data_path_and_name_and_type audio=sound
    ! grep -q '\.ark:[0-9]*$' "${dir}/wav.scp" || audio=kaldi_ark
    arguments+=("${flag}" "${dir}/wav.scp,speech,${audio}" "${flag}" "${dir}/text,text,text"
        "${flag}" "${dir}/text_ctc,text_ctc,text" "${flag}" "${dir}/utt2task,task,text")
}
common_arguments() { # <phase>: set ${arguments}
    local config=${1}_config
    arguments=(--config "${!config}" --prompts "${prompts}"
        --ctc_token_list "${token_dir}/tokens.txt")
    if [ "${token_type}" = bpe ]; then
        arguments+=(--ctc_bpemodel "${token_dir}/bpe.model")
    fi
}
collect() { # <phase>: collect the lengths of its examples unless up to date
    local phase=$1 stats arguments train=${1}_train_set examples=()
    stats=$(stats_dir "${phase}")
    examples=("$(examples "${phase}" "${!train}")" "$(examples "${phase}" "${valid_set}")")
    require_examples "${examples[@]}"
    [ -f "${token_dir}/tokens.txt" ] || fail "no CTC vocabulary ${token_dir}/tokens.txt; run stage 5 first"
    common_arguments "${phase}"
    prepare "${expdir}/log/shapes_${phase}.log" python3 -m speechllm.bin.collect_shapes \
        --train "${examples[0]}" --valid "${examples[1]}" --output "${stats}" \
        "${arguments[@]}" "${train_words[@]}"
    log "Stage ${current}: $(last_line "${expdir}/log/shapes_${phase}.log")"
}
train() { # <phase> <initial checkpoint, may be empty>
    local phase=$1 init=$2 dir=${1}_exp stats arguments
    stats=$(stats_dir "${phase}")
    [ -f "${stats}/.done" ] || fail "no lengths of the examples in ${stats}; run stage 7 first"
    local train=${phase}_train_set
    require_examples "$(examples "${phase}" "${!train}")" "$(examples "${phase}" "${valid_set}")"
    common_arguments "${phase}"
    data_arguments "${phase}" train
    data_arguments "${phase}" valid
    # Without an LLM there is no target text, only the CTC transcript.
    local name text=text_shape
    [ -f "${stats}/train/text_shape" ] || text=text_ctc_shape
    for name in speech_shape "${text}"; do
        arguments+=(--train_shape_file "${stats}/train/${name}"
            --valid_shape_file "${stats}/valid/${name}")
    done
    [ -z "${init}" ] || arguments+=(--init_param "${init}")
    arguments+=(--output_dir "${!dir}" --resume true "${train_words[@]}")
    if [ "${trainer}" = lightning ]; then
        launch_lightning "${phase}" "${!dir}" "${arguments[@]}"
    else
        launch "${phase}" "${!dir}" python3 -m speechllm.bin.speechllm_train "${arguments[@]}"
    fi
}
finetune_first_pass() { # fine-tune the encoder's model with its decoder
    local phase=warmup log_file=${first_pass_exp}.log start=${train_config}
    [ -n "${warmup_config}" ] || phase=train
    [ ! -d "${init_param:-.}/first_pass" ] || start=${init_param}/first_pass
    local train=${phase}_train_set examples
    examples=("$(examples "${phase}" "${!train}")" "$(examples "${phase}" "${valid_set}")")
    require_examples "${examples[@]}"
    lock "${first_pass_exp}"
    log "Stage ${current}: first pass: ${first_pass_exp}; log: ${log_file}"
    OMP_NUM_THREADS=$(threads 1) ${cuda_cmd} --gpu "$((ngpu > 0))" "${log_file}" \
        python3 -m speechllm.bin.finetune_whisper --config "${first_pass_config}" \
        --model "${start}" --examples "${examples[0]}" --valid "${examples[1]}" \
        --output "${first_pass_exp}"
    log "Stage ${current}: $(last_line "${log_file}")"
}
launch() { # <name> <folder> <command …>: train through ESPnet's launcher
    local name=$1 dir=$2 errors
    shift 2
    lock "${dir}"
    # The launcher's errors repeat the whole log; print the job runner's summary only.
    if ! {
        errors=$(
            OMP_NUM_THREADS=$(threads $((ngpu > 0 ? ngpu : 1))) \
                python3 -m espnet2.bin.launch --cmd "${cuda_cmd} --name ${name}" \
                --log "${dir}/train.log" --ngpu "${ngpu}" --num_nodes "${num_nodes}" \
                --init_file_prefix "${dir}/.dist_init_" --multiprocessing_distributed true -- \
                "$@" 2>&1 >&3
        )
    } 3>&1; then
        grep -E '^(run|slurm)\.pl: ' <<< "${errors}" >&2 || tail -n 1 <<< "${errors}" >&2
        fail "stage ${current} stopped; log: ${dir}/train.log; the same command resumes from the last epoch"
    fi
}
launch_lightning() { # <name> <folder> <arguments …>: train with Lightning
    local name=$1 dir=$2 options=() command=(python3 -m speechllm.bin.lightning_train)
    shift 2
    lock "${dir}"
    options=(--name "${name}" --gpu "${ngpu}")
    if [ "${num_nodes}" -gt 1 ]; then
        options+=(--num_threads "$((ngpu > 0 ? ngpu : 1))" --num_nodes "${num_nodes}")
        command=(srun --export=ALL --ntasks-per-node=1 "${command[@]}")
    fi
    OMP_NUM_THREADS=$(threads $((ngpu > 0 ? ngpu : 1))) \
        ${cuda_cmd} "${options[@]}" "${dir}/train.log" "${command[@]}" \
        --strategy "${strategy}" --ngpu "${ngpu}" --num_nodes "${num_nodes}" "$@" ||
        fail "stage ${current} stopped; log: ${dir}/train.log; the same command resumes from the last epoch"
}

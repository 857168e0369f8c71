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
    if [ "${kind}" = train ] && [ "${num_splits_speechllm}" -gt 1 ]; then
        dir=$(splits_dir "${phase}")
        arguments+=(--multiple_iterator true)
    fi
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
    [ "${num_splits_speechllm}" -eq 1 ] || split_tables "${phase}" "${examples[0]}" "${stats}"
}
splits_dir() { # <phase>: print the folder of the splits of its training tables
    echo "$(stats_dir "$1")/splits${num_splits_speechllm}"
}
split_tables() { # <phase> <examples> <stats>: split the training tables unless up to date
    local dir size
    dir=$(splits_dir "$1")
    if cmp -s "$3/.done" "${dir}/.done" && [ "${dir}/.done" -nt "$2/wav.scp" ]; then return; fi
    size=$(count "$2/wav.scp")
    if [ "${size}" -lt $((num_splits_speechllm * num_nodes * (ngpu > 0 ? ngpu : num_processes))) ]; then
        fail "--num_splits_speechllm ${num_splits_speechllm}: ${size} examples in $2 are too few for so many splits"
    fi
    rm -f "${dir}/.done"
    prepare "${expdir}/log/splits_$1.log" python3 -m espnet2.bin.split_scps \
        --scps "$2"/{wav.scp,text,text_ctc,utt2task} \
        "$3/train/speech_shape" "$3/train/$(text_lengths "$3")" \
        --num_splits "${num_splits_speechllm}" --output_dir "${dir}"
    cp "$3/.done" "${dir}/.done"
    log "Stage ${current}: ${dir}"
}
text_lengths() { # <stats>: print the name of the file that limits a batch's text
    # Without an LLM there is no target text, only the CTC transcript.
    if [ -f "$1/train/text_shape" ]; then echo text_shape; else echo text_ctc_shape; fi
}
examples_key() { # <example dir …>: print a checksum of the examples
    local dir table
    for dir in "$@"; do
        for table in text text_ctc utt2task utt2num_samples; do
            [ ! -f "${dir}/${table}" ] || cat "${dir}/${table}"
        done
    done | sha256sum
}
trained_since() { # <training> <file>: true if a checkpoint is newer, ESPnet's or Lightning's
    [ "$1/checkpoint.pth" -nt "$2" ] || [ "$1/last.ckpt" -nt "$2" ]
}
require_same_examples() { # <training> <key of the examples>: fail if it was finished with others
    if [ -f "$1/train.done" ] && [ "$(< "$1/train.done")" != "$2" ]; then
        fail "stage ${current}: $1 was trained on other examples than those that stage 5 has now written; to train on these, give another --expdir or move the folder away; to keep this model, give --skip_stages ${current}"
    fi
}
train() { # <phase> <initial checkpoint, may be empty>
    local phase=$1 init=$2 dir=${1}_exp stats arguments key examples
    stats=$(stats_dir "${phase}")
    [ -f "${stats}/.done" ] || fail "no lengths of the examples in ${stats}; run stage 7 first"
    local train=${phase}_train_set
    examples=("$(examples "${phase}" "${!train}")" "$(examples "${phase}" "${valid_set}")")
    require_examples "${examples[@]}"
    key=$(examples_key "${examples[@]}")
    lock "${!dir}"  # what another run does to it is done before the checks
    require_same_examples "${!dir}" "${key}"
    common_arguments "${phase}"
    data_arguments "${phase}" train
    data_arguments "${phase}" valid
    local name folder=${stats}/train
    if [ "${num_splits_speechllm}" -gt 1 ]; then
        folder=$(splits_dir "${phase}")
        cmp -s "${stats}/.done" "${folder}/.done" || fail "no ${folder}, or of other examples; run stage 7 with --num_splits_speechllm ${num_splits_speechllm} first"
    fi
    for name in speech_shape "$(text_lengths "${stats}")"; do
        arguments+=(--train_shape_file "${folder}/${name}"
            --valid_shape_file "${stats}/valid/${name}")
    done
    [ -z "${init}" ] || arguments+=(--init_param "${init}")
    [ "${num_processes}" -eq 1 ] || arguments+=(--num_processes "${num_processes}")
    arguments+=(--output_dir "${!dir}" --resume true "${train_words[@]}")
    if [ "${trainer}" = lightning ]; then
        launch_lightning "${phase}" "${!dir}" "${arguments[@]}"
    else
        launch "${phase}" "${!dir}" python3 -m speechllm.bin.speechllm_train "${arguments[@]}"
    fi
    echo "${key}" > "${!dir}/train.done"
}
finetune_first_pass() { # fine-tune the encoder's model with its decoder
    local phase=warmup log_file=${first_pass_exp}.log start=${train_config}
    [ -n "${warmup_config}" ] || phase=train
    [ -z "${first_pass_tasks}" ] || phase=first_pass
    [ ! -d "${init_param:-.}/first_pass" ] || start=${init_param}/first_pass
    local train=${phase}_train_set examples
    examples=("$(examples "${phase}" "${!train}")" "$(examples "${phase}" "${valid_set}")")
    require_examples "${examples[@]}"
    lock "${first_pass_exp}"
    log "Stage ${current}: first pass: ${first_pass_exp}; log: ${log_file}"
    ${cuda_cmd} --gpu "$((ngpu > 0))" "${log_file}" \
        python3 -m speechllm.bin.finetune_whisper --config "${first_pass_config}" \
        --model "${start}" --examples "${examples[0]}" --valid "${examples[1]}" \
        --output "${first_pass_exp}"
    log "Stage ${current}: $(last_line "${log_file}")"
}
launch() { # <name> <locked folder> <command …>: train through ESPnet's launcher
    local name=$1 dir=$2 errors
    shift 2
    # The launcher's errors repeat the whole log; print the job runner's summary only.
    # With SLURM_KILL_BAD_EXIT a process that fails ends those on the other machines.
    if ! {
        errors=$(
            SLURM_KILL_BAD_EXIT=1 python3 -m espnet2.bin.launch --cmd "${cuda_cmd} --name ${name}" \
                --log "${dir}/train.log" --ngpu "${ngpu}" --num_nodes "${num_nodes}" \
                --init_file_prefix "${dir}/.dist_init_" --multiprocessing_distributed true -- \
                "$@" 2>&1 >&3
        )
    } 3>&1; then
        grep -E '^(run|slurm)\.pl: ' <<< "${errors}" >&2 || tail -n 1 <<< "${errors}" >&2
        fail "stage ${current} stopped; log: ${dir}/train.log; the same command resumes from the last checkpoint"
    fi
}
launch_lightning() { # <name> <locked folder> <arguments …>: train with Lightning
    local name=$1 dir=$2 options=() command=(python3 -m speechllm.bin.lightning_train)
    shift 2
    options=(--name "${name}" --gpu "${ngpu}")
    if [ "${num_nodes}" -gt 1 ]; then
        options+=(--num_threads "$((ngpu > 0 ? ngpu : 1))" --num_nodes "${num_nodes}")
        command=(srun --export=ALL --ntasks-per-node=1 "${command[@]}")
    fi
    ${cuda_cmd} "${options[@]}" "${dir}/train.log" "${command[@]}" \
        --strategy "${strategy}" --ngpu "${ngpu}" --num_nodes "${num_nodes}" "$@" ||
        fail "stage ${current} stopped; log: ${dir}/train.log; the same command resumes from the last checkpoint"
}

# shellcheck shell=bash disable=SC2154,SC2034  # reads and sets variables of speechllm.sh
# Stages 11 to 15 of speechllm.sh: the exported model, what is added to it and made with it.

exported() { # fail unless the exported model is that of the last training
    if [ -n "${download_model}" ]; then
        lock "${final_exp}"
        prepare "${final_exp}/log/fetch_model.log" python3 -m speechllm.bin.fetch_models \
            --trained "${download_model}" --link "${model}"
        unlock
        log "Stage ${current}: $(last_line "${final_exp}/log/fetch_model.log")"
        return
    fi
    [ -f "${model}/config.yaml" ] || fail "no exported model ${model}; run stage 10 first"
    if trained_since "${final_exp}" "${model}/config.yaml"; then
        fail "${final_exp} was trained after the export of ${model}; run stage 10 first"
    fi
    if [ -n "${first_pass_config}" ] && [ "${first_pass_exp}/model.safetensors" -nt "${model}/config.yaml" ]; then
        fail "${first_pass_exp} was trained after the export of ${model}; run stage 10 first"
    fi
    # Stage 10 of older versions leaves no .checkpoint.
    local checkpoint=${inference_model}
    [ ! -f "${model}/.checkpoint" ] || checkpoint=$(< "${model}/.checkpoint")
    if [ "${checkpoint}" != "${inference_model}" ]; then
        fail "${model} is the export of ${checkpoint}, not of ${inference_model} (--inference_model); run stage 10 first"
    fi
}
tune() { # <examples>: fit score weights, guard and confidence unless up to date
    local done=${final_exp}/tune.done key
    key=$(shopt -s nullglob
        cat "${model}"/{config.yaml,*.safetensors,first_pass/*.safetensors,generation_config.yam[l]} \
            "$1"/{wav.scp,text,utt2task} | sha256sum)
    if [ -f "${done}" ] && [ "$(< "${done}")" = "${key}" ]; then
        log "Stage ${current}: guard and confidence in ${model} are up to date"
        return
    fi
    rm -f "${done}"
    ${decode_cmd} --gpu "${inference_gpus}" "${final_exp}/tune.log" \
        python3 -m speechllm.bin.tune --if_possible --model "${model}" --examples "$1" \
        --limit 500 --device "${inference_device}"
    echo "${key}" > "${done}"
    show '^[^#].*\(score_weights.json\|guard.yaml\|confidence.json\): ' "${final_exp}/tune.log"
}
show_use() { # print how to transcribe with the model, in the first of the test tasks
    local folder task source target options=
    [ -f "${model}/config.yaml" ] || return 0
    folder=$(cd "${model}" && pwd)
    IFS=': ' read -r task source target _ <<< "${test_tasks}"
    [ "${task}" = asr ] || options="--task ${task} --target_language ${target} "
    echo "model: ${folder}"
    printf 'transcribe: . %q && speechllm transcribe --model %q %s--language %s FILE\n' \
        "${MAIN_ROOT}/tools/activate_python.sh" "${folder}" "${options}" "${source}"
}
draw_alignments() { # <test set>: draw its worst utterances, if CTC was trained
    local dir=${decode_dir}/$1
    if [ ! -d "${model}" ] || grep -qs '^ctc_trained: false' "${model}/config.yaml"; then return; fi
    if ${decode_cmd} --gpu "${inference_gpus}" "${dir}/log/alignments.log" \
        python3 -m speechllm.bin.draw_alignments --model "${model}" \
        --device "${inference_device}" --examples "$(examples test "$1")" --decode_dir "${dir}"; then
        log "Stage 13: $(last_line "${dir}/log/alignments.log")"
    else
        log "warning: no pictures of alignments, see ${dir}/log/alignments.log; the scores are complete"
    fi
}

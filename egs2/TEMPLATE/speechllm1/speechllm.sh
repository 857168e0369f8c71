#!/usr/bin/env bash
# Run the stages of a recipe, from a corpus on disk to a table of scores. The recipe's
# run.sh calls it with data sets and configs. Each stage can be run alone; a re-run
# resumes where the last run stopped.
set -euo pipefail

# ---- options; --help describes them below ------------------------------------------
stage=1
stop_stage=13
skip_stages=
skip_data_prep=false
skip_train=false
skip_eval=false
# folders
datadir=data
dumpdir=dump
expdir=exp
speechllm_exp=
speechllm_stats_dir=
# jobs
ngpu=
num_nodes=1
num_processes=1
nj=
inference_nj=1
gpu_inference=
# data
train_set=
extra_train_sets=
valid_set=
test_sets=
lang=
local_data_opts=
speed_perturb_factors=
audio_format=flac
fs=16k
allow_pipes=false
min_wav_duration=0.1
max_wav_duration=30
# tasks and tokens
train_tasks=
test_tasks=
plain_transcripts=false
prompts=conf/prompts.yaml
token_type=char
min_character_count=1
nbpe=500
bpemode=bpe
bpe_input_sentence_size=1000000
token_list=
# training
trainer=espnet
strategy=ddp
train_config=
encoder=
llm=
train_args=
train_tag=
num_splits_speechllm=1
init_param=
warmup_config=
warmup_tasks=
warmup_set=
warmup_model=valid.loss.ave.pth
first_pass_config=
first_pass_tasks=
second_config=
second_tasks=
second_set=
second_init_model=valid.acc.ave.pth
# decoding, export
inference_config=
inference_args=
inference_tag=
inference_model=valid.acc.ave.pth
download_model=
eval_valid_set=false
score_opts=
normalizer=speechllm
hf_repo=
hf_license=
# ----------------------------------------------------------------------------------

help_message="Usage: $(basename "$0") --train_set NAME --valid_set NAME --test_sets \"NAME …\" --train_config FILE [options]
Stages:
   1 data preparation (local/data.sh)      9 training, second training (when --second_config)
   2 speed perturbation                   10 average and export
   3 format wav.scp                       11 weights, guard and confidence, from the validation set
   4 leave out bad utterances             12 decoding
   5 examples, CTC vocabulary             13 scoring
   6 pretrained models                    14 pack
   7 lengths of the examples              15 upload
   8 warm-up of bridge and CTC (when --warmup_config), first pass (when --first_pass_config)
Options [default]; ARGS are shell words, with quotes where they contain spaces:
  --stage N               first stage, 1 to 15 [${stage}]
  --stop_stage N          last stage; name 14 or 15 to run them [${stop_stage}]
  --skip_stages \"N …\"     stages to skip [none]
  --skip_data_prep BOOL   skip stages 1 to 5 [${skip_data_prep}]
  --skip_train BOOL       skip stages 6 to 11 [${skip_train}]
  --skip_eval BOOL        skip stages 12 and 13 [${skip_eval}]
  --config FILE           file of name=value lines that sets these options
 Folders
  --datadir DIR           Kaldi-style data dirs [${datadir}]
  --dumpdir DIR           formatted audio and examples [${dumpdir}]
  --expdir DIR            models, hypotheses, scores [${expdir}]
  --speechllm_exp DIR     experiment of stage 9 [EXPDIR/speechllm_<train_tag>]
  --speechllm_stats_dir DIR  lengths of stage 7; of the warm-up in DIR_warmup, of the second
                          training in DIR_second [EXPDIR/speechllm_stats_train]
 Jobs (local or Slurm: cmd.sh)
  --ngpu N                GPUs per machine for training; 0: CPU [1 if this machine, or the partition of Slurm, has one]
  --num_nodes N           machines for training [${num_nodes}]
  --num_processes N       processes for training on one machine without a GPU [${num_processes}]
  --nj N                  parallel jobs for data preparation [CPU cores; on Slurm of a node, up to 16]
  --inference_nj N        parallel jobs for decoding [${inference_nj}]
  --gpu_inference BOOL    decode on a GPU [true when ngpu > 0]
 Data
  --train_set NAME        training data dir
  --extra_train_sets \"NAME …\"  more training data dirs, from stage 9 on, without speed perturbation; NAME*0.5 takes half of one [none]
  --valid_set NAME        validation data dir, which selects the checkpoint
  --test_sets \"NAME …\"    data dirs to decode and score
  --lang NAME             suffix of the folders in expdir [none]
  --local_data_opts ARGS  arguments of local/data.sh in addition to --datadir [none]
  --speed_perturb_factors \"F …\"  speed factors of the training speech, such as \"0.9 1.0 1.1\" [none]
  --audio_format FORMAT   audio in dumpdir: flac, wav, or flac.ark, wav.ark (Kaldi archives) [${audio_format}]
  --fs RATE               sampling rate in dumpdir; there is only 16k [${fs}]
  --allow_pipes BOOL      run the commands in wav.scp that end in | [${allow_pipes}]
  --min_wav_duration S    shortest training utterance, seconds [${min_wav_duration}]
  --max_wav_duration S    longest training utterance, seconds [${max_wav_duration}]
 Tasks and tokens; a task is asr:<lang>, st:<lang>:<lang> or asr_st:<lang>:<lang>
  --train_tasks \"T …\"     training tasks, optionally weighted: \"asr:en*2 st:en:fr*0.5\"
  --test_tasks \"T …\"      test tasks [train_tasks]
  --plain_transcripts BOOL  remove case and punctuation from training transcripts [${plain_transcripts}]
  --prompts FILE          prompt of each task [${prompts}]
  --token_type TYPE       CTC vocabulary, char or bpe [${token_type}]
  --min_character_count N  characters that the training text has less often get no CTC label [${min_character_count}]
  --nbpe N                size of the bpe vocabulary [${nbpe}]
  --bpemode MODE          sentencepiece's model of bpe, bpe or unigram [${bpemode}]
  --bpe_input_sentence_size N  random sentences to train bpe on; 0: all [${bpe_input_sentence_size}]
  --token_list DIR        folder of tokens.txt (and bpe.model) of a trained model, to adapt it with its CTC labels [none]
 Training
  --trainer NAME          espnet, or lightning (Lightning, needs ESPnet 202611) [${trainer}]
  --strategy NAME         of lightning: ddp, fsdp or deepspeed [${strategy}]
  --train_config FILE     ESPnet config of stage 9
  --encoder NAME          hub id or folder of an encoder in place of the configs'; their other options stay [none]
  --llm NAME              hub id or folder of an LLM in place of the configs' [none]
  --train_args ARGS       more arguments of the training program, such as \"--save_every 10m\": how often
                          it saves within an epoch (also on SIGTERM and SIGUSR1) [none]
  --train_tag NAME        name of the folder in expdir, to which --encoder and --llm are added [name of the config]
  --num_splits_speechllm N  splits of the training tables, of which a process holds one at a time [${num_splits_speechllm}]
  --init_param PATHS      checkpoint that initialises the model [that of stage 8]
  --warmup_config FILE    config of stage 8, which is skipped without one [none]
  --warmup_tasks \"T …\"    tasks of stage 8 [the asr tasks of train_tasks]
  --warmup_set NAME       data dir of stage 8 [train_set]
  --warmup_model NAME     checkpoint of stage 8 that initialises stage 9 [${warmup_model}]
  --first_pass_config FILE  fine-tuning of the encoder's model with its decoder, in stage 8 and on its
                          data, for the first pass of decoding [none: as pretrained]
  --first_pass_tasks \"T …\"  tasks of that fine-tuning: asr, and st into English [those of stage 8]
  --second_config FILE    config of a second training in stage 9 [none]
  --second_tasks \"T …\"    tasks of the second training [train_tasks]
  --second_set NAME       data dir of the second training [train_set]
  --second_init_model NAME  checkpoint of the first that initialises the second [${second_init_model}]
 Decoding, scoring, export
  --inference_config FILE config of stage 12, exported with the model; empty: that of the model
  --inference_args ARGS   more arguments of the decoding program [none]
  --inference_tag NAME    decode into decode_NAME [decode.yaml: decode, decode_x.yaml: decode_x]
  --inference_model NAME  checkpoint to export and decode with [${inference_model}]
  --download_model NAME   trained model to decode with, a folder or hub id; skips training and
                          the preparation of its data [none]
  --eval_valid_set BOOL   decode and score the validation set, too [${eval_valid_set}]
  --score_opts ARGS       more arguments of the scoring program [none]
  --normalizer NAME       text normaliser of the scores: speechllm, whisper (as for published WER) or whisper:FOLDER [${normalizer}]
  --hf_repo NAME          <user>/<name> on the Hugging Face hub, for stage 15
  --hf_license NAME       licence of the weights for its model card, such as apache-2.0 [none]
  --help                  print this text"

. utils/espnet_options.sh
. utils/parse_options.sh
. utils/locks.sh
. utils/stages.sh
. utils/names.sh
. utils/training.sh
. utils/model_folder.sh

# ---- validation of the options ---------------------------------------------------
whole stage 1 15
whole stop_stage 1 15
[ "${stage}" -le "${stop_stage}" ] || fail "--stage ${stage} lies after --stop_stage ${stop_stage}"
for number in ${skip_stages}; do
    [[ ${number} =~ ^([1-9]|1[0-5])$ ]] || fail "--skip_stages takes numbers from 1 to 15, not '${number}'"
done
for name in num_nodes num_processes ${nj:+nj} inference_nj nbpe min_character_count; do whole "${name}" 1 999999; done
whole bpe_input_sentence_size 0 999999999
whole num_splits_speechllm 1 128  # each table has as many open files
[ -z "${ngpu}" ] || whole ngpu 0 1024
case ${plain_transcripts} in true | false) ;; *) fail "--plain_transcripts takes true or false, not '${plain_transcripts}'" ;; esac
if [ -n "${token_list}" ]; then
    [ -f "${token_list}/tokens.txt" ] || fail "--token_list: no file '${token_list}/tokens.txt'"
    if [ -f "${token_list}/bpe.model" ]; then token_type=bpe; else token_type=char; fi
fi
case ${token_type} in char | bpe) ;; *) fail "--token_type takes char or bpe, not '${token_type}'" ;; esac
case ${bpemode} in bpe | unigram) ;; *) fail "--bpemode takes bpe or unigram, not '${bpemode}'" ;; esac
case ${audio_format} in
    flac | wav | flac.ark | wav.ark) ;;
    *) fail "--audio_format takes flac, wav, flac.ark or wav.ark, not '${audio_format}'" ;;
esac
case ${fs} in
    16k | 16000) ;;
    *) fail "--fs ${fs}: speech encoders take 16 kHz, to which stage 3 resamples all audio; leave --fs out" ;;
esac
if [[ ${download_model} =~ ^\.{0,2}/ ]] && [ ! -d "${download_model}" ]; then
    fail "--download_model: no folder '${download_model}'"
fi
for name in encoder llm init_param; do
    if [ -n "${download_model}" ] && [ -n "${!name}" ]; then
        fail "--${name} is for a training, but ${download_model} (--model, --download_model) is decoded as it is; leave one of them out"
    fi
done
[[ ${dumpdir} != *,* ]] || fail "--dumpdir: ESPnet cannot read from a folder with a comma, '${dumpdir}'; choose another"
for name in train_set valid_set test_sets train_tasks train_config; do
    [ -n "${!name}" ] || fail "--${name} is needed; --help lists the options"
done
for name in prompts train_config warmup_config first_pass_config second_config inference_config; do
    [ -z "${!name}" ] || [ -f "${!name}" ] || fail "--${name}: no file '${!name}'"
done
case ${normalizer} in speechllm | whisper | whisper:?*) ;; *) fail "--normalizer takes speechllm, whisper or whisper:FOLDER, not '${normalizer}'" ;; esac
case ${trainer} in espnet | lightning) ;; *) fail "--trainer takes espnet or lightning, not '${trainer}'" ;; esac
case ${strategy} in
    ddp) ;;
    fsdp | deepspeed) [ "${trainer}" = lightning ] || fail "--strategy ${strategy} goes with --trainer lightning" ;;
    *) fail "--strategy takes ddp, fsdp or deepspeed, not '${strategy}'" ;;
esac
case ${gpu_inference} in '' | true | false) ;; *) fail "--gpu_inference takes true or false, not '${gpu_inference}'" ;; esac

. ./path.sh
. ./cmd.sh
if [ -z "${ngpu}" ]; then
    ngpu=$(available ngpu gpus "${cuda_cmd}")
    [ "${ngpu}" -le 1 ] || ngpu=1
fi
if [ "${num_processes}" -gt 1 ] && [ "${ngpu}${num_nodes}" != 01 ]; then
    fail "--num_processes is for --ngpu 0 and one machine; with GPUs there is a process for each"
fi
if [ -z "${nj}" ]; then
    nj=$(available nj cpus "${train_cmd}")
    [ "${cmd_backend:-local}" = local ] || [ "${nj}" -le 16 ] || nj=16
fi
if [ -z "${gpu_inference}" ]; then
    [ "${ngpu}" -gt 0 ] && gpu_inference=true || gpu_inference=false
fi
if "${gpu_inference}"; then inference_gpus=1 inference_device=cuda; else inference_gpus=0 inference_device=cpu; fi
local_data_words=() train_words=() inference_words=() score_words=()
split_words local_data_words --local_data_opts "${local_data_opts}"
split_words train_words --train_args "${train_args}"
split_words inference_words --inference_args "${inference_args}"
split_words score_words --score_opts "${score_opts}"
if [ "${SPEECHLLM_PID##*:}" -eq "${PPID}" ]; then
    # run.sh ends this script when it is killed, but cannot after SIGKILL.
    {
        while grep -qx "PPid:[[:space:]]*${PPID}" "/proc/$$/status"; do sleep 1; done
        kill $$
    } > /dev/null 2>&1 &
fi

if "${skip_data_prep}"; then skip_stages+=" 1 2 3 4 5"; fi
if "${skip_train}"; then skip_stages+=" 6 7 8 9 10 11"; fi
if "${skip_eval}"; then skip_stages+=" 12 13"; fi
[ -n "${speed_perturb_factors}" ] || skip_stages+=" 2"
[ -n "${warmup_config}${first_pass_config}" ] || skip_stages+=" 8"

# ---- names -----------------------------------------------------------------------
# The training phases: warmup (stage 8), train and second (9).
base_train_set=${train_set}
warmup_set=${warmup_set:-${train_set}}
second_set=${second_set:-${train_set}}
phases=train
[ -z "${warmup_config}" ] || phases="warmup ${phases}"
[ -z "${second_config}" ] || phases+=" second"
# all training sets without repetition, before and after stage 2
training_sets=$(printf '%s\n' "${base_train_set}" \
    ${warmup_config:+"${warmup_set}"} ${second_config:+"${second_set}"} | sort -u)
decoded_sets=${test_sets}
if "${eval_valid_set}" && [[ " ${test_sets} " != *" ${valid_set} "* ]]; then
    decoded_sets+=" ${valid_set}"
fi
other_sets="${valid_set} ${extra_train_sets} ${test_sets}"
if [ -n "${download_model}" ]; then
    skip_stages+=" 2 6 7 8 9 10 11"
    phases=
    training_sets=
    other_sets=${decoded_sets}
    train_tag=${train_tag:-$(model_tag "${download_model}")}
fi
perturbed_sets=$(for name in ${training_sets}; do with_speeds "${name}"; done)
# shellcheck disable=SC2046 # one word per set
prepared_sets=$(printf '%s\n' $(without_weights "${other_sets}") | sort -u)

if [ -z "${warmup_tasks}" ]; then
    for task in ${train_tasks}; do
        [[ ${task} != asr:* ]] || warmup_tasks+="${task} "
    done
fi
second_tasks=${second_tasks:-${train_tasks}}
test_tasks=$(without_weights "${test_tasks:-${train_tasks}}")
# shellcheck disable=SC2034 # read as ${phase}_train_set
second_train_set=$(with_speeds "${second_set}")
# shellcheck disable=SC2034
warmup_train_set=$(with_speeds "${warmup_set}")
# shellcheck disable=SC2034
first_pass_train_set=${warmup_train_set}
train_train_set=$(with_speeds "${base_train_set}")

suffix=${lang:+_${lang}}
train_tag=${train_tag:-$(tag_of "${train_config}")}
warmup_suffix=$(models_tag "${warmup_config}")${suffix}
train_suffix=$(models_tag "${train_config}")${suffix}
second_suffix=$(models_tag "${second_config}")${suffix}
warmup_exp=${expdir}/speechllm_$(tag_of "${warmup_config:-warmup}")${warmup_suffix}
train_exp=${speechllm_exp:-${expdir}/speechllm_${train_tag}${train_suffix}}
first_pass_exp=${expdir}/$(tag_of "${first_pass_config:-first_pass}")$(llm="" models_tag "${train_config}")${suffix}
second_exp=${speechllm_exp:-${expdir}/speechllm_${train_tag}}_$(tag_of "${second_config:-second}")${second_suffix}
final_phase=${phases:-train}
final_phase=${final_phase##* }
final_exp=${final_phase}_exp
final_exp=${!final_exp}
model=${final_exp}/model
decode_name=$(tag_of "${inference_config:-decode.yaml}")
[[ ${decode_name} =~ ^decode(_|$) ]] || decode_name=decode_${decode_name}
[ -z "${inference_tag}" ] || decode_name=decode_${inference_tag}
decode_dir=${final_exp}/${decode_name}
token_dir=${datadir}/token_list/${token_type}
if [ "${token_type}" = bpe ]; then
    [ "${bpemode}" = bpe ] || token_dir+=_${bpemode}
    token_dir="${token_dir}${nbpe}"
fi
[ -z "${token_list}" ] || token_dir=${datadir}/token_list/given

# ---- stages ----------------------------------------------------------------------
prep_log=${dumpdir}/log
all_raw_sets="${perturbed_sets} ${prepared_sets}"
shown_set=${base_train_set}
[ -z "${download_model}" ] || shown_set=${test_sets%% *}

if running 1; then
    # shellcheck disable=SC2086 # one word per set
    sets_in "${datadir}" ${training_sets} ${prepared_sets}
    begin 1 "data preparation: ${dirs[*]}"
    lock "${datadir}" "${prep_log}"
    [ ! -d downloads ] || lock downloads
    local/data.sh --datadir "${datadir}" "${local_data_words[@]}"
    pipes=()
    "${allow_pipes}" && pipes=(--allow_pipes)
    prepare "${prep_log}/validate.log" python3 -m speechllm.bin.data_dir validate \
        "${pipes[@]}" --input "${dirs[@]}"
    finish "$(count "${datadir}/${shown_set}/text") utterances in ${datadir}/${shown_set}" \
        "${prep_log}/validate.log"
fi

if running 2; then
    begin 2 "speed perturbation: ${speed_perturb_factors}"
    lock "${datadir}" "${prep_log}"
    for name in ${training_sets}; do
        # shellcheck disable=SC2086 # one word per factor
        prepare "${prep_log}/perturb_${name}.log" python3 -m speechllm.bin.data_dir \
            perturb_speed --input "${datadir}/${name}" --output "${datadir}/${name}_sp" \
            --factors ${speed_perturb_factors}
    done
    finish "$(count "${datadir}/${train_train_set}/text") utterances in ${datadir}/${train_train_set}" \
        "${prep_log}/perturb_${base_train_set}.log"
fi

if running 3; then
    begin 3 "format wav.scp: ${datadir}/ -> ${dumpdir}/audio/"
    lock "${datadir}" "${dumpdir}"  # a recipe's local/data.sh may write tables in place
    pipes=()
    "${allow_pipes}" && pipes=(--allow_pipes)
    for name in ${all_raw_sets}; do
        clamp=()
        [[ " ${test_sets} " != *" ${name} "* ]] || clamp=(--clamp_segments)
        format_audio=(python3 -m speechllm.bin.format_audio --input "${datadir}/${name}"
            --output "${dumpdir}/audio/${name}" --audio_format "${audio_format}"
            "${pipes[@]}" "${clamp[@]}")
        # An array writes the audio, in shards of 1000 utterances; the last job the tables.
        size=$(count "${datadir}/${name}/utt2spk" 2> /dev/null || true)
        jobs=$(((size + 999) / 1000))
        [ "${jobs}" -le "${nj}" ] || jobs=${nj}
        if [ "${jobs}" -gt 1 ]; then
            prepare JOB=1:"${jobs}" "${prep_log}/format_${name}.JOB.log" \
                "${format_audio[@]}" --num_jobs "${jobs}" --job JOB
            for ((job = 1; job <= jobs; job++)); do
                show '^warning: ' "${prep_log}/format_${name}.${job}.log"
            done
        fi
        prepare "${prep_log}/format_${name}.log" "${format_audio[@]}"
        show '^warning: ' "${prep_log}/format_${name}.log"
        log "Stage 3: $(last_line "${prep_log}/format_${name}.log")"
    done
    finish "16 kHz mono ${audio_format} in ${dumpdir}/audio" "${prep_log}/format_*.log"
fi

if running 4; then
    begin 4 "leave out bad utterances: ${dumpdir}/audio/ -> ${dumpdir}/raw/"
    lock "${dumpdir}"
    for name in ${all_raw_sets}; do
        limits=(--min_text_length 0)
        # Test sets keep long, short and silent utterances.
        if [[ " ${test_sets} " != *" ${name} "* ]]; then
            limits=(--min_seconds "${min_wav_duration}" --max_seconds "${max_wav_duration}")
        fi
        prepare "${prep_log}/filter_${name}.log" python3 -m speechllm.bin.data_dir filter \
            --input "${dumpdir}/audio/${name}" --output "${dumpdir}/raw/${name}" "${limits[@]}"
        log "Stage 4: $(last_line "${prep_log}/filter_${name}.log")"
    done
    # shellcheck disable=SC2086 # one word per set
    sets_in "${dumpdir}/raw" ${all_raw_sets}
    prepare "${prep_log}/statistics.log" python3 -m speechllm.bin.data_dir statistics \
        --input "${dirs[@]}" --output "${dumpdir}/STATISTICS"
    cat "${dumpdir}/STATISTICS.md"
    finish "statistics in ${dumpdir}/STATISTICS.md and .png; dropped utterances and reasons in ${dumpdir}/raw/*/dropped.tsv" \
        "${prep_log}/filter_*.log"
fi

if running 5; then
    begin 5 "examples (utterance x task) and the CTC vocabulary"
    lock "${dumpdir}" "${datadir}/token_list"
    make_examples() { # <phase> <set> <tasks> [<more sets>]
        local output inputs plain=() keep=()
        output=$(examples "$1" "$2")
        read -ra inputs <<< "$2 ${4:-}"
        sets_in "${dumpdir}/raw" "${inputs[@]}"
        # Test sets keep the original transcripts.
        if "${plain_transcripts}" && [ "$1" != test ]; then plain=(--plain_transcripts); fi
        # So do recipes that only test, whose training set is a test set.
        if [ "$1" = test ] || [[ " ${test_sets} " == *" ${train_set} "* ]]; then
            keep=(--keep_empty)
        fi
        prepare "${prep_log}/examples_$(basename "${output}").log" \
            python3 -m speechllm.bin.make_examples --input "${dirs[@]}" \
            --tasks "$3" --output "${output}" "${plain[@]}" "${keep[@]}"
        log "Stage 5: ${output}: $(count "${output}/text") examples"
    }
    texts=()
    covered=()
    if [ -n "${phases}" ] && [[ " ${test_sets} " == *" ${valid_set} "* ]] &&
        [ "${test_tasks}" != "$(without_weights "${train_tasks}")" ]; then
        fail "${valid_set} is the validation set and a test set; --test_tasks must equal --train_tasks then"
    fi
    for phase in ${phases}; do
        tasks=${phase}_tasks
        set=${phase}_train_set
        extra=${extra_train_sets}
        [ "${phase}" != warmup ] || extra=
        make_examples "${phase}" "${!set}" "${!tasks}" "${extra}"
        make_examples "${phase}" "${valid_set}" "$(without_weights "${!tasks}")"
        # The same texts in a second training must not change the labels of the first.
        if [ "${phase}" != second ] ||
            [ "${!set} ${!tasks}" != "${train_train_set} ${train_tasks}" ]; then
            texts+=("$(examples "${phase}" "${!set}")/text_ctc")
        fi
        covered+=("$(examples "${phase}" "${valid_set}")/text_ctc")
    done
    if [ -n "${phases}" ] && [ -n "${first_pass_config}" ] && [ -n "${first_pass_tasks}" ]; then
        make_examples first_pass "${first_pass_train_set}" "${first_pass_tasks}"
        make_examples first_pass "${valid_set}" "$(without_weights "${first_pass_tasks}")"
    fi
    for name in ${decoded_sets}; do
        [ -z "${phases}" ] || [ "${name}" != "${valid_set}" ] || continue
        make_examples test "${name}" "${test_tasks}"
        covered+=("$(examples test "${name}")/text_ctc")
    done
    if [ -z "${phases}" ]; then
        finish "no CTC vocabulary, which ${download_model} has" "${prep_log}/examples_*.log"
    else
        size=(--min_count "${min_character_count}")
        [ "${token_type}" = char ] || size=(--size "${nbpe}" --bpemode "${bpemode}"
            --input_sentence_size "${bpe_input_sentence_size}")
        [ -z "${token_list}" ] || size=(--copy_from "${token_list}")
        prepare "${prep_log}/vocabulary.log" python3 -m speechllm.bin.build_vocabulary \
            --text "${texts[@]}" --type "${token_type}" "${size[@]}" --output "${token_dir}" \
            --coverage "${texts[@]}" "${covered[@]}"
        show 'coverage of ' "${prep_log}/vocabulary.log"
        finish "$(count "${token_dir}/tokens.txt") CTC tokens in ${token_dir}/tokens.txt" \
            "${prep_log}/vocabulary.log"
    fi
fi

if running 6; then
    begin 6 "pretrained models; check that the tokenizer covers the targets"
    for phase in ${phases}; do
        set=${phase}_train_set
        require_examples "$(examples "${phase}" "${!set}")"
    done
    lock "${final_exp}"
    replace_models
    configs=()
    for phase in ${phases}; do
        config=${phase}_config
        configs+=(--config "${!config}")
    done
    prepare "${final_exp}/log/fetch_models.log" python3 -m speechllm.bin.fetch_models "${configs[@]}"
    show ': commit [0-9a-f]*$' "${final_exp}/log/fetch_models.log"
    for phase in ${phases}; do
        config=${phase}_config
        set=${phase}_train_set
        prepare "${final_exp}/log/prompts_${phase}.log" python3 -m speechllm.bin.check_prompts \
            --config "${!config}" --prompts "${prompts}" \
            --examples "$(examples "${phase}" "${!set}")"
        log "Stage 6: $(last_line "${final_exp}/log/prompts_${phase}.log")"
    done
    finish "$(last_line "${final_exp}/log/fetch_models.log")" "${final_exp}/log/fetch_models.log"
fi

if running 7; then
    begin 7 "lengths of the examples"
    lock "${expdir}/log"
    replace_models
    for phase in ${phases}; do
        lock "$(stats_dir "${phase}")"
        collect "${phase}"
    done
    finish "lengths of $(count "$(stats_dir train)/train/speech_shape") training examples" \
        "${expdir}/log/shapes_*.log"
fi

if running 8; then
    begin 8 "warm-up of bridge and CTC, first pass; log: ${warmup_exp}/train.log"
    replace_models
    results=()
    if [ -n "${warmup_config}" ]; then
        train warmup ""
        results+=("${warmup_exp}/${warmup_model}")
    fi
    if [ -n "${first_pass_config}" ]; then
        finetune_first_pass
        results+=("${first_pass_exp}")
    fi
    finish "${results[*]}" "${warmup_exp}/train.log"
fi

if running 9; then
    begin 9 "training: ${train_exp}; log: ${train_exp}/train.log"
    replace_models
    start=${init_param}
    if [ -z "${start}" ] && [ -n "${warmup_config}" ]; then
        start=${warmup_exp}/${warmup_model}
        [ -f "${start}" ] || fail "no warm-up checkpoint ${start}; run stage 8, or give --warmup_config ''"
    fi
    train train "${start}"
    if [ -n "${second_config}" ]; then
        start=${train_exp}/${second_init_model}
        [ -f "${start}" ] || fail "--second_init_model: no checkpoint ${start}"
        log "Stage 9: second training: ${second_exp}; log: ${second_exp}/train.log"
        train second "${start}"
    fi
    finish "${final_exp}/${inference_model}" "${final_exp}/train.log"
fi

if running 10; then
    begin 10 "average and export: ${model}"
    [ ! -d "${final_exp}" ] || lock "${final_exp}"
    [ -e "${final_exp}/${inference_model}" ] || fail "no checkpoint ${final_exp}/${inference_model}; run stage 9 first"
    prepare "${final_exp}/export.log" python3 -m speechllm.bin.export_model \
        --exp_dir "${final_exp}" --checkpoint "${inference_model}" --output "${model}" \
        ${first_pass_config:+--first_pass "${first_pass_exp}"} \
        ${inference_config:+--config "${inference_config}"}
    echo "${inference_model}" > "${model}/.checkpoint"
    finish "$(last_line "${final_exp}/export.log")" "${final_exp}/export.log"
fi

if running 11; then
    begin 11 "score weights, guard and confidence, from ${valid_set}: ${model}/{guard.yaml,confidence.json}"
    exported
    if grep -q '^ctc_trained: false' "${model}/config.yaml"; then
        finish "no guard, which needs CTC, and that was not trained" "${final_exp}/export.log"
    else
        valid_examples=$(examples "${final_phase}" "${valid_set}")
        require_examples "${valid_examples}"
        lock "${final_exp}"
        tune "${valid_examples}"
        finish "${model}" "${final_exp}/tune.log"
    fi
fi

if running 12 || running 13; then
    # Before version 0.2, decode.yaml wrote to decode_decode.
    old_dir=${final_exp}/decode_$(tag_of "${inference_config:-decode.yaml}")
    if [ -z "${inference_tag}" ] && [ -d "${old_dir}" ] && [ ! -e "${decode_dir}" ]; then
        mv "${old_dir}" "${decode_dir}"
        log "renamed ${old_dir} to ${decode_dir}"
    fi
fi

if running 12; then
    begin 12 "decoding: ${decode_dir}/"
    exported
    for name in ${decoded_sets}; do require_examples "$(examples test "${name}")"; done
    lock "${decode_dir}"
    for name in ${decoded_sets}; do
        dir=${decode_dir}/${name}
        ${decode_cmd} --gpu "${inference_gpus}" JOB=1:"${inference_nj}" "${dir}/log/decode.JOB.log" \
            python3 -m speechllm.bin.decode --model "${model}" \
            --examples "$(examples test "${name}")" --output_dir "${dir}" \
            ${inference_config:+--config "${inference_config}"} --num_shards "${inference_nj}" --shard JOB \
            --device "${inference_device}" "${inference_words[@]}"
        log "Stage 12: ${dir}/text: $(count "${dir}/text") hypotheses"
    done
    finish "hypotheses of ${decoded_sets} in ${decode_dir}" "${decode_dir}/*/log/decode.*.log"
fi

if running 13; then
    begin 13 "scoring"
    [ ! -d "${decode_dir}" ] || lock "${decode_dir}"
    for name in ${decoded_sets}; do
        [ -f "${decode_dir}/${name}/text" ] || fail "no hypotheses ${decode_dir}/${name}/text; run stage 12 first"
        require_examples "$(examples test "${name}")"
    done
    for name in ${decoded_sets}; do
        prepare "${decode_dir}/${name}/log/score.log" python3 -m speechllm.bin.score \
            --examples "$(examples test "${name}")" --decode_dir "${decode_dir}/${name}" \
            --normalizer "${normalizer}" "${score_words[@]}"
    done
    lock "${expdir}/log"
    prepare "${expdir}/log/report.log" python3 -m speechllm.bin.report \
        --exp_root "$(dirname "${final_exp}")" --output "${expdir}/RESULTS" \
        --compare_with "${decode_dir}"
    for name in ${decoded_sets}; do draw_alignments "${name}"; done
    cat "${expdir}/RESULTS.md"
    finish "${expdir}/RESULTS.md and RESULTS.json" "${expdir}/log/report.log"
    show_use
fi

if running 14; then
    begin 14 "pack: ${final_exp}/model.zip"
    exported
    lock "${final_exp}"
    prepare "${final_exp}/log/pack.log" python3 -m speechllm.bin.pack --force \
        --model "${model}" --output "${final_exp}/model.zip"
    finish "$(last_line "${final_exp}/log/pack.log")" "${final_exp}/log/pack.log"
fi

if running 15; then
    begin 15 "upload to ${hf_repo:-(no --hf_repo)}"
    [ -n "${hf_repo}" ] || fail "no repository to upload to; give --hf_repo <user>/<name>"
    exported
    lock "${final_exp}"
    results=()
    [ ! -f "${expdir}/RESULTS.json" ] || results=(--results "${expdir}/RESULTS.json" --system "${final_exp##*/}")
    prepare "${final_exp}/log/upload.log" python3 -m speechllm.bin.upload \
        --model "${model}" --repo_id "${hf_repo}" ${hf_license:+--license "${hf_license}"} \
        "${results[@]}"
    finish "$(last_line "${final_exp}/log/upload.log")" "${final_exp}/log/upload.log"
fi

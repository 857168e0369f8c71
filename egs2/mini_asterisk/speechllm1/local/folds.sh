#!/usr/bin/env bash
# Cross-validation over all prompts: trains and decodes the model of run.sh once per fold,
# each on the prompts of the other folds, and scores the hypotheses of all folds together:
# exp_folds/RESULTS.md. A re-run resumes and skips finished folds.
set -euo pipefail
cd "$(dirname "$0")/.."

folds=5
tiny=false
asterisk_dir=
whisper=true
help_message="Usage: local/folds.sh [options] [options of run.sh, such as --ngpu 1]
Trains and tests the model of run.sh on N folds of the prompts and scores all prompts
together. Takes N times the time of run.sh; 0.3 GB of formatted audio per fold.
Options [default]:
  --folds N               number of folds, 2 to 20 [${folds}]
  --whisper BOOL          decode all prompts with Whisper-base, too, zero-shot and with
                          that which stage 8 of each fold fine-tunes [${whisper}]
  --tiny BOOL             run all stages in minutes, on a few prompts and batches [${tiny}]
  --asterisk_dir DIR      unpacked sound and text packages [ASTERISK in db.sh]"
pass_to=./run.sh
. utils/parse_options.sh
. utils/locks.sh

whole folds 2 20
suffix=_folds
[ "${folds}" = 5 ] || suffix+="${folds}"
"${tiny}" && suffix+=_tiny

. ./path.sh
make_examples() { # <output> <tasks> <sets>...
    python3 -m speechllm.bin.make_examples --output "$1" --tasks "$2" --input "${@:3}" \
        --keep_empty
}
whisper_decode() { # <model> <beam size> <examples> <output>
    python3 -m speechllm.bin.baseline whisper --model "$1" --beam_size "$2" \
        --examples "$3" --output "$4"
}
tasks_of() { # <examples> <pattern>: the tasks that begin with it
    local tasks
    tasks=$(awk '{ print $2 ":" $3 ($2 == "asr" ? "" : ":" $4) }' "$1/utt2task" |
        grep "^$2" | sort -u)
    echo "${tasks//$'\n'/ }"
}

for ((fold = 1; fold <= folds; fold++)); do
    exp=exp${suffix}/${fold}
    if [ -f "${exp}/finished" ]; then
        log "fold ${fold} of ${folds}: finished"
        continue
    fi
    log "fold ${fold} of ${folds}: ${exp}"
    ./run.sh "${other_options[@]}" --tiny "${tiny}" --asterisk_dir "${asterisk_dir}" \
        --datadir "data${suffix}/${fold}" --dumpdir "dump${suffix}/${fold}" \
        --expdir "${exp}" --local_data_opts "--folds ${folds} --fold ${fold}"
    touch "${exp}/finished"
done

# The Whisper that stage 8 of each fold fine-tuned.
for ((fold = 1; fold <= folds; fold++)); do
    exp=exp${suffix}/${fold}
    recognition=dump${suffix}/${fold}/examples/test_asr
    if ! "${whisper}" || [ ! -d "${exp}/first_pass" ]; then
        continue
    fi
    lock "${recognition%/*}" "${exp}/whisper_finetuned"
    make_examples "${recognition}" "$(tasks_of "${recognition%_asr}" asr)" \
        "dump${suffix}/${fold}/raw/test"
    for search in "greedy 1" "beam5 5"; do
        whisper_decode "${exp}/first_pass" "${search#* }" "${recognition}" \
            "${exp}/whisper_finetuned/decode_${search% *}/test"
    done
    unlock
done

pooled=exp${suffix}/pooled
examples=dump${suffix}/pooled/examples/test
sets=()
for ((fold = 1; fold <= folds; fold++)); do sets+=("dump${suffix}/${fold}/raw/test"); done
score() { # <examples> <decode dir>
    python3 -m speechllm.bin.score --examples "$1" --decode_dir "$2"
}
lock "dump${suffix}/pooled" "${pooled}"
first_examples=dump${suffix}/1/examples/test
make_examples "${examples}" "$(tasks_of "${first_examples}" '')" "${sets[@]}"
make_examples "${examples}_asr" "$(tasks_of "${first_examples}" asr)" "${sets[@]}"

# All systems of the first fold; each must have been decoded in all folds.
for first in "exp${suffix}"/1/*/*/test/text; do
    system=${first#"exp${suffix}/1/"}
    system=${system%/text}
    dirs=()
    for ((fold = 1; fold <= folds; fold++)); do dirs+=("exp${suffix}/${fold}/${system}"); done
    python3 -m speechllm.bin.pool_decode_dirs --decode_dirs "${dirs[@]}" \
        --output "${pooled}/${system}"
    if [[ "${system}" == whisper_* ]]; then
        score "${examples}_asr" "${pooled}/${system}"
    else
        score "${examples}" "${pooled}/${system}"
        compared=${pooled}/${system%/test}
    fi
done

if "${whisper}"; then
    system=${pooled}/whisper_base/decode_greedy/test
    whisper_decode openai/whisper-base 1 "${examples}_asr" "${system}"
    score "${examples}_asr" "${system}"
fi
python3 -m speechllm.bin.report --exp_root "${pooled}" --output "exp${suffix}/RESULTS" \
    --compare_with "${compared}"
cat "exp${suffix}/RESULTS.md"

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
  --whisper BOOL          decode all prompts with Whisper-base's own decoder, too [${whisper}]
  --tiny BOOL             run all stages in minutes, on a few prompts and batches [${tiny}]
  --asterisk_dir DIR      unpacked sound and text packages [ASTERISK in db.sh]"
pass_to=./run.sh
. utils/parse_options.sh
. utils/locks.sh

whole folds 2 20
suffix=_folds
[ "${folds}" = 5 ] || suffix+="${folds}"
"${tiny}" && suffix+=_tiny

for ((fold = 1; fold <= folds; fold++)); do
    if [ -f "exp${suffix}/${fold}/finished" ]; then
        log "fold ${fold} of ${folds}: finished"
        continue
    fi
    log "fold ${fold} of ${folds}: exp${suffix}/${fold}"
    ./run.sh "${other_options[@]}" --tiny "${tiny}" --asterisk_dir "${asterisk_dir}" \
        --datadir "data${suffix}/${fold}" --dumpdir "dump${suffix}/${fold}" \
        --expdir "exp${suffix}/${fold}" --local_data_opts "--folds ${folds} --fold ${fold}"
    touch "exp${suffix}/${fold}/finished"
done

. ./path.sh
pooled=exp${suffix}/pooled
examples=dump${suffix}/pooled/examples/test
sets=()
for ((fold = 1; fold <= folds; fold++)); do sets+=("dump${suffix}/${fold}/raw/test"); done
make_examples() { # <name> <tasks>
    python3 -m speechllm.bin.make_examples --input "${sets[@]}" --tasks "$2" \
        --output "${examples}$1" --keep_empty
}
score() { # <examples> <decode dir>
    python3 -m speechllm.bin.score --examples "$1" --decode_dir "$2"
}
lock "dump${suffix}/pooled" "${pooled}"
tasks=$(awk '{ print $2 ":" $3 ($2 == "asr" ? "" : ":" $4) }' \
    "dump${suffix}/1/examples/test/utt2task" | sort -u)
make_examples '' "${tasks//$'\n'/ }"

# All systems of the first fold; each must have been decoded in all folds.
for first in "exp${suffix}"/1/*/*/test/text; do
    system=${first#"exp${suffix}/1/"}
    system=${system%/text}
    dirs=()
    for ((fold = 1; fold <= folds; fold++)); do dirs+=("exp${suffix}/${fold}/${system}"); done
    python3 -m speechllm.bin.pool_decode_dirs --decode_dirs "${dirs[@]}" \
        --output "${pooled}/${system}"
    score "${examples}" "${pooled}/${system}"
done
compared=${pooled}/${system%/test}

if "${whisper}"; then
    recognition=$(grep '^asr:' <<< "${tasks}")
    make_examples _asr "${recognition//$'\n'/ }"
    system=${pooled}/whisper_base/decode_greedy/test
    python3 -m speechllm.bin.baseline whisper --examples "${examples}_asr" --output "${system}"
    score "${examples}_asr" "${system}"
fi
python3 -m speechllm.bin.report --exp_root "${pooled}" --output "exp${suffix}/RESULTS" \
    --compare_with "${compared}"
cat "exp${suffix}/RESULTS.md"

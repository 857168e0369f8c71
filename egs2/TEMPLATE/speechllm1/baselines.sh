#!/usr/bin/env bash
# Decode and score baselines on the test examples of stage 5: Whisper, Whisper followed
# by NLLB, and SeamlessM4T v2. Scores go into the RESULTS of the recipe's own models. A
# recipe's local/baselines.sh calls this with its test sets; a re-run resumes.
set -euo pipefail

test_sets=
dumpdir=dump
expdir=exp
whisper=openai/whisper-large-v3
nllb=facebook/nllb-200-3.3B
seamless=facebook/seamless-m4t-v2-large
beam_size=5
batch_size=8
dtype=auto
device=auto
normalizer=speechllm

help_message="Usage: $(basename "$0") --test_sets \"NAME …\" [options]
  --test_sets \"NAME …\"  test sets of stage 5
  --dumpdir DIR         formatted audio and examples [${dumpdir}]
  --expdir DIR          hypotheses and scores [${expdir}]
  --whisper MODEL       hub id or folder; for transcripts and translations into English [${whisper}]
  --nllb MODEL          translates Whisper's transcripts; '' skips it [${nllb}]
  --seamless MODEL      transcribes and translates; '' skips it [${seamless}]
  --beam_size N         beam size; 1 is greedy [${beam_size}]
  --batch_size N        utterances per batch [${batch_size}]
  --dtype TYPE          float32, bfloat16, float16 or auto [${dtype}]
  --normalizer NAME     text normaliser of the scores, as in stage 13 [${normalizer}]
  --device DEVICE       cpu, cuda or auto [${device}]
  --help                print this text"

. utils/parse_options.sh
. utils/locks.sh

[ -n "${test_sets}" ] || fail "--test_sets is missing"
. ./path.sh

decode=decode_beam${beam_size}
options=(--beam_size "${beam_size}" --batch_size "${batch_size}" --dtype "${dtype}" --device "${device}")
decode_and_score() { # <system> <model> <name> <set> <examples> [<more options>]
    local output=${expdir}/$3/${decode}/$4
    lock "$(dirname "${output}")"
    python3 -m speechllm.bin.baseline "$1" --model "$2" --examples "$5" \
        --output "${output}" "${options[@]}" "${@:6}"
    python3 -m speechllm.bin.score --examples "$5" --decode_dir "${output}" \
        --normalizer "${normalizer}"
    unlock
}
name_of() { basename "$1" | tr '.' '_'; }

for name in ${test_sets}; do
    examples=${dumpdir}/examples/${name}
    [ -f "${examples}/utt2task" ] || fail "no examples in ${examples}; run stage 5 first"
    # Whisper's tasks: recognition of all languages, translation into English.
    tasks=$(awk '{ print "asr:" $3; if ($2 != "asr" && $4 == "en") print $2 ":" $3 ":en" }' \
        "${examples}/utt2task" | sort -u)
    lock "${dumpdir}"
    python3 -m speechllm.bin.make_examples --input "${dumpdir}/raw/${name}" \
        --tasks "${tasks//$'\n'/ }" --output "${examples}_whisper" --keep_empty
    unlock
    decode_and_score whisper "${whisper}" "$(name_of "${whisper}")" "${name}" "${examples}_whisper"
    if [ -n "${nllb}" ]; then
        decode_and_score nllb "${nllb}" "$(name_of "${whisper}")_$(name_of "${nllb}")" "${name}" \
            "${examples}" --transcripts "${expdir}/$(name_of "${whisper}")/${decode}/${name}"
    fi
    if [ -n "${seamless}" ]; then
        decode_and_score seamless "${seamless}" "$(name_of "${seamless}")" "${name}" "${examples}"
    fi
done
lock "${expdir}/log"
python3 -m speechllm.bin.report --exp_root "${expdir}" --output "${expdir}/RESULTS"
cat "${expdir}/RESULTS.md"

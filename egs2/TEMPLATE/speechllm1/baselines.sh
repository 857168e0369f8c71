#!/usr/bin/env bash
# The systems that a model stands beside: Whisper, NLLB on Whisper's transcripts, and
# SeamlessM4T v2, on the test examples of stage 5 and scored into the same RESULTS.
# A recipe's local/baselines.sh calls it with its sets; what is decoded is not again.
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
device=cpu
if nvidia-smi -L > /dev/null 2>&1; then device=cuda; fi

help_message="Usage: $(basename "$0") --test_sets \"NAME …\" [options]
  --test_sets \"NAME …\"  sets that stage 5 made test examples of
  --dumpdir DIR         formatted audio and examples [${dumpdir}]
  --expdir DIR          hypotheses and scores [${expdir}]
  --whisper MODEL       hub id or folder; transcribes, and translates into English [${whisper}]
  --nllb MODEL          translates Whisper's transcripts; '' for none [${nllb}]
  --seamless MODEL      transcribes and translates; '' for none [${seamless}]
  --beam_size N         hypotheses kept; 1 is greedy [${beam_size}]
  --batch_size N        utterances at once [${batch_size}]
  --dtype TYPE          float32, bfloat16, float16 or auto [${dtype}]
  --device DEVICE       cpu or cuda [here ${device}]
  --help                this text"

. utils/parse_options.sh

fail() {
    echo "$(basename "$0"): error: $*" >&2
    exit 1
}
[ $# -eq 0 ] || fail "unknown argument '$1'; --help lists the options"
[ -n "${test_sets}" ] || fail "--test_sets is missing"
. ./path.sh

decode=decode_beam${beam_size}
options=(--beam_size "${beam_size}" --batch_size "${batch_size}" --dtype "${dtype}" --device "${device}")
answer() { # <system> <model> <name> <set> <examples> [<more options>]
    local output=${expdir}/$3/${decode}/$4
    python3 -m speechllm.bin.baseline "$1" --model "$2" --examples "$5" \
        --output "${output}" "${options[@]}" "${@:6}"
    python3 -m speechllm.bin.score --examples "$5" --decode_dir "${output}"
}
name_of() { basename "$1" | tr '.' '_'; }

for name in ${test_sets}; do
    examples=${dumpdir}/examples/${name}
    [ -f "${examples}/utt2task" ] || fail "no examples in ${examples}; run stage 5 first"
    # What Whisper can do of it: all that is spoken, and translations into English.
    tasks=$(awk '{ print "asr:" $3; if ($2 != "asr" && $4 == "en") print $2 ":" $3 ":en" }' \
        "${examples}/utt2task" | sort -u)
    python3 -m speechllm.bin.make_examples --input "${dumpdir}/raw/${name}" \
        --tasks "${tasks//$'\n'/ }" --output "${examples}_whisper"
    answer whisper "${whisper}" "$(name_of "${whisper}")" "${name}" "${examples}_whisper"
    if [ -n "${nllb}" ]; then
        answer nllb "${nllb}" "$(name_of "${whisper}")_$(name_of "${nllb}")" "${name}" \
            "${examples}" --transcripts "${expdir}/$(name_of "${whisper}")/${decode}/${name}"
    fi
    if [ -n "${seamless}" ]; then
        answer seamless "${seamless}" "$(name_of "${seamless}")" "${name}" "${examples}"
    fi
done
python3 -m speechllm.bin.report --exp_root "${expdir}" --output "${expdir}/RESULTS"
cat "${expdir}/RESULTS.md"

#!/usr/bin/env bash
# Prepare ${datadir}/{train,dev,eval1,eval2,eval3} of CSJ.
set -euo pipefail

csj_dir=
datadir=data
style=disfluent
edition=
kinds=ASMRD
gap=0.5
max_seconds=10
max_same_text=300
dev_utterances=0
help_message="Usage: local/data.sh [options]
  --csj_dir DIR        the corpus [CSJ in db.sh]
  --datadir DIR        output folder of the sets [${datadir}]
  --style STYLE        disfluent (verbatim) or fluent (without fillers and repairs) [${style}]
  --edition EDITION    sdb, xml or dvd [the first of these that is there]
  --kinds LETTERS      training talks: A academic, S simulated, M other, R read, D dialogue [${kinds}]
  --gap S              longest pause within an utterance, seconds [${gap}]
  --max_seconds S      add no segment to an utterance longer than this [${max_seconds}]
  --max_same_text N    maximum number of training utterances with the same text [${max_same_text}]
  --dev_utterances N   take the first N training utterances as dev, in ESPnet 4000 [lhotse's 39 talks]"
. utils/parse_options.sh
find_corpus --csj_dir "${csj_dir}" CSJ "that holds WAV and MORPH (or XML), or the DVDs,"

python3 -m speechllm.bin.prepare_data csj --csj_dir "${corpus_dir}" \
    --output "${datadir}" --style "${style}" ${edition:+--edition "${edition}"} \
    --kinds "${kinds}" --gap "${gap}" --max_seconds "${max_seconds}" \
    --max_same_text "${max_same_text}" --dev_utterances "${dev_utterances}"

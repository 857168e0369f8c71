#!/usr/bin/env bash
# Prepare ${datadir}/{train,dev,test} of my_corpus: one Kaldi-style data dir per set, with
# wav.scp, text, utt2spk, spk2utt and utt2lang. Further tables are optional: segments
# (<utterance> <recording> <start> <end>), text.<lang> (translations). Stage 1 validates
# the tables. Adapt the loop below to the files of your corpus.
set -euo pipefail

my_corpus_dir=
datadir=data
lang=en
help_message="Usage: local/data.sh [options]
  --my_corpus_dir DIR  folder of train.tsv, dev.tsv and test.tsv, with one utterance per
                       line: speaker, audio file, transcript [MY_CORPUS in db.sh]
  --datadir DIR        output folder of the sets [${datadir}]
  --lang LANG          language of the corpus [${lang}]"
. utils/parse_options.sh
find_corpus --my_corpus_dir "${my_corpus_dir}" MY_CORPUS "of train.tsv, dev.tsv and test.tsv"

for name in train dev test; do
    table=${corpus_dir}/${name}.tsv
    [ -f "${table}" ] || fail "no file ${table}; adapt local/data.sh to your corpus"
    dir=${datadir}/${name}
    mkdir -p "${dir}"
    # Utterance ids begin with the speaker, so that both have the same order.
    awk -F '\t' -v dir="${dir}" -v corpus="${corpus_dir}" -v lang="${lang}" '{
        id = sprintf("%s-%06d", $1, NR)
        print id, ($2 ~ "^/" ? $2 : corpus "/" $2) > (dir "/wav.scp")
        print id, $3 > (dir "/text")
        print id, $1 > (dir "/utt2spk")
        print id, lang > (dir "/utt2lang")
    }' "${table}"
    for file in wav.scp text utt2spk utt2lang; do
        sort -o "${dir}/${file}" "${dir}/${file}"
    done
    awk '{ ids[$2] = ids[$2] " " $1 } END { for (speaker in ids) print speaker ids[speaker] }' \
        "${dir}/utt2spk" | sort > "${dir}/spk2utt"
done

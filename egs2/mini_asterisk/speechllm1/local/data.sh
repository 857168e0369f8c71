#!/usr/bin/env bash
# Prepare ${datadir}/{train,dev,test} of Asterisk's voice prompts, which are downloaded if
# missing, and ${datadir}/train_messages_<lang>: program messages spoken by eSpeak NG.
set -euo pipefail

datadir=data
asterisk_dir=
max_prompts=
message_languages=
folds=10
fold=1
help_message="Usage: local/data.sh [options]
  --asterisk_dir DIR      unpacked sound and text packages [ASTERISK in db.sh]
  --datadir DIR           output folder of the sets [${datadir}]
  --max_prompts N         use N prompts for training, N/4 each for dev and test, and N
                          messages per language [all]
  --message_languages LIST  languages of the messages, separated by commas [none]
  --folds N               number of parts of the prompts, of which one is test [${folds}]
  --fold N                number of the test part [${fold}]"
. utils/parse_options.sh
[ -z "${max_prompts}" ] || whole max_prompts 1 99999999
find_corpus --asterisk_dir "${asterisk_dir}" ASTERISK \
    "of the unpacked packages, or 'downloads' to fetch them,"

options=(--download_dir downloads)
if [ "${corpus_dir}" != downloads ]; then
    options=(--asterisk_dir "${corpus_dir}")
fi
prepare() { # <folder>
    python3 -m speechllm.bin.prepare_data asterisk --output "$1" "${options[@]}" \
        --folds "${folds}" --fold "${fold}"
}
messages() {
    local language
    for language in ${message_languages//,/ }; do
        python3 -m speechllm.bin.prepare_data spoken_messages --languages "${language}" \
            --output "${datadir}/train_messages_${language}" \
            --audio_dir "${datadir}/messages_audio" \
            --exclude "${datadir}/dev" "${datadir}/test" "$@"
    done
}
if [ -z "${max_prompts}" ]; then
    prepare "${datadir}"
    messages
    exit
fi

# Take the first prompts of each set, in all languages. An id is <lang>-<prompt>.
prepare "${datadir}/all"
for name in train dev test; do
    number=${max_prompts}
    [ "${name}" = train ] || number=$(((max_prompts + 3) / 4))
    awk -v number="${number}" '
        { prompt = $1; sub(/^[^-]*-/, "", prompt) }
        !(prompt in taken) && count < number { taken[prompt]; count++ }
        prompt in taken
    ' "${datadir}/all/${name}/text" > "${datadir}/all/${name}.ids"
    python3 -m speechllm.bin.data_dir subset --input "${datadir}/all/${name}" \
        --ids "${datadir}/all/${name}.ids" --output "${datadir}/${name}"
done
messages --max_messages "${max_prompts}"

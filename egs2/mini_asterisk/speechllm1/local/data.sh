#!/usr/bin/env bash
# data/{train,dev,test} of Asterisk's voice prompts, fetched when they are not here, and
# data/train_messages_<lang>, programs' messages that eSpeak NG reads aloud.
set -euo pipefail

datadir=data
asterisk_dir=
max_prompts=
message_languages=
help_message="Usage: local/data.sh [--asterisk_dir DIR] [--datadir ${datadir}] [--max_prompts N] [--message_languages L,L]
  --asterisk_dir DIR  unpacked sound and text packages [ASTERISK in db.sh]
  --datadir DIR       where train, dev and test are made [${datadir}]
  --max_prompts N     train on N prompts only, dev and test with a quarter of that, and on N messages a language [all]
  --message_languages L,L  languages of the messages [none]"
. utils/parse_options.sh
. ./db.sh

source_dir=${asterisk_dir:-${ASTERISK:-}}
if [ -z "${source_dir}" ]; then
    echo "local/data.sh: error: db.sh has no line ASTERISK=…; write the folder of the unpacked packages there, or 'downloads' to fetch them" >&2
    exit 1
fi
. ./path.sh
options=(--download_dir downloads)
if [ "${source_dir}" != downloads ]; then
    options=(--asterisk_dir "${source_dir}")
fi
prepare() { # <folder>
    python3 -m speechllm.bin.prepare_data asterisk --output "$1" "${options[@]}"
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

# The first prompts of each set, in all languages; an id is <lang>-<prompt>.
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

# shellcheck shell=bash
# Begin and end of stages, results from logs, folders of sets. Source it after
# utils/parse_options.sh and utils/locks.sh.

begin() { # <stage> <description>
    current=$1
    SECONDS=0
    log "Stage $1: $2"
}
finish() { # <result> <log>
    unlock
    log "Stage ${current}: done in ${SECONDS} s: $1; log: $2"
}
require_examples() { # <folder …>
    local folder name
    for folder in "$@"; do
        for name in wav.scp text text_ctc utt2task; do
            [ -f "${folder}/${name}" ] || fail "no examples in ${folder} (${name} is missing); run stage 5 first"
        done
    done
}
sets_in() { # <folder> <set …>: set ${dirs} to the sets' folders in it
    local set
    dirs=()
    for set in "${@:2}"; do dirs+=("$1/${set}"); done
}
show() { # <pattern> <log>: print the lines of a log that match
    local line
    while read -r line; do
        log "Stage ${current}: ${line}"
    done < <(grep -a -e "$1" "$2" || true)
}
last_line() { # <log>: print the last output line of a command
    grep -v -e '^#' -e '^progress: ' -e '^ *$' "$1" | tail -n 1
}
count() { wc -l < "$1"; }
threads() { # <jobs>: print the number of CPU cores per parallel job
    local share=$(($(nproc) / $1))
    echo "${OMP_NUM_THREADS:-$((share > 0 ? share : 1))}"
}

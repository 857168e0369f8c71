# shellcheck shell=bash disable=SC2154,SC2034  # reads and sets variables of speechllm.sh
# Begin and end of stages, jobs, results from logs. Source it after
# utils/parse_options.sh and utils/locks.sh.

running() { # <stage>: true if it is to be run
    [ "${stage}" -le "$1" ] && [ "$1" -le "${stop_stage}" ] && [[ " ${skip_stages} " != *" $1 "* ]]
}
begin() { # <stage> <description>
    current=$1
    SECONDS=0
    log "Stage $1: $2"
}
finish() { # <result> <log>
    unlock
    log "Stage ${current}: done in ${SECONDS} s: $1; log: $2"
}
prepare() { # <log> <command …>: run a job of data preparation
    ${train_cmd} "$@"
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
available() { # <option> <gpus or cpus> <job runner>: print how many a job can have
    ${3} --count "$2" || fail "--$1 has no default, since '$3' cannot count $2; give --$1"
}

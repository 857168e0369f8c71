# shellcheck shell=bash
# Option parser. Source it after the defaults to set a variable for each `--name value`
# of the command line:
#
#   nj=4
#   help_message="Usage: …"
#   . utils/parse_options.sh
#
# `--name value` sets the variable `name` (dashes become underscores), which must have a
# default. Where the default is true or false, the value must be one of them. `--help`
# prints ${help_message}. Other arguments are refused. `--config FILE` reads name=value
# lines from FILE; as in Kaldi, the command line takes precedence.
#
# The value of an option whose name ends in _args or _opts is a line of shell words, which
# split_words (below) splits into an array; as_words writes such words.
#
# A recipe's run.sh also sets
#
#   pass_to=./speechllm.sh
#
# Then only the options that have a line in ${help_message} set variables. All others,
# also those of a --config file, are collected in "${other_options[@]}" for that script,
# and --help prints its help as well.
#
# A recipe's local/data.sh calls find_corpus (below) next. A script with a function
# espnet_option (espnet_options.sh) answers ESPnet's options with it. `whole nj 1 16`
# (below) checks an option.
#
# It sources end_children.sh: the script's running commands end with it.

fail() { # <message>: print it with the name of the script and exit
    echo "$(basename "$0"): error: $*" >&2
    exit 1
}

. "$(dirname "${BASH_SOURCE[0]}")/end_children.sh"

_set_option() { # <--name> <value> [<config file>]
    local _option=${1#--}
    _option=${_option//-/_}
    if [ -n "${pass_to:-}" ] && [[ ${help_message:-} != *$'\n'"  --${_option} "* ]]; then
        other_options+=("$1" "$2")
        return
    fi
    if ! [[ ${_option} =~ ^[a-z_][A-Za-z0-9_]*$ ]] || [ -z "${!_option+set}" ] ||
        [[ ${_option} == _* ]]; then
        if declare -F espnet_option > /dev/null; then
            _answer=$(espnet_option "${_option}")
            [ -z "${_answer}" ] || fail "$1${3:+ in $3} ${_answer}"
        fi
        fail "unknown option '$1'${3:+ in $3}; --help lists the options"
    fi
    case ${!_option} in
        true | false)
            case $2 in
                true | false) ;;
                *) fail "$1 takes true or false, not '$2'${3:+ in $3}" ;;
            esac ;;
    esac
    printf -v "${_option}" '%s' "$2"
}

_read_config() { # <file>
    local _names _name _value
    [ -f "$1" ] || fail "--config: no file '$1'"
    _names=$(sed -nE 's/^([A-Za-z_][A-Za-z0-9_]*)=.*/\1/p' "$1")
    if [ -z "${_names}" ]; then
        fail "--config: no name=value line in '$1'; for YAML use --train_config"
    fi
    [[ $1 == */* ]] || set -- "./$1"  # without a slash, bash searches PATH
    for _name in ${_names}; do
        # shellcheck source=/dev/null
        _value=$(. "$1" > /dev/null && printf '%s' "${!_name}")
        _set_option "--${_name}" "${_value}" "$1"
    done
}

# Check that an option is a whole number; drop its leading zeros, which mean octal in shell
# arithmetic.
whole() { # <option> <least> <greatest>
    if ! [[ ${!1} =~ ^[0-9]{1,9}$ ]] || [ "${!1}" -lt "$2" ] || [ "${!1}" -gt "$3" ]; then
        fail "--$1 takes a whole number from $2 to $3, not '${!1}'"
    fi
    printf -v "$1" '%d' "$((10#${!1}))"
}

# Print an option and its value as quoted words for a line of shell words; nothing if the
# value is empty.
as_words() { # <--option> <value>
    [ -z "$2" ] || printf "%s '%s' " "$1" "${2//\'/\'\\\'\'}"
}

# Split a line of shell words into an array. Quotes and backslashes group as in a shell;
# nothing is expanded or run.
split_words() { # <array> <--option> <its value>
    local program='import os, shlex, sys
words = shlex.split(sys.argv[1])
sys.stdout.buffer.write(b"".join(os.fsencode(word) + b"\0" for word in words))'
    [ -n "$3" ] || return 0
    mapfile -d '' -t "$1" < <(python3 -c "${program}" "$3" 2> /dev/null)
    wait $! || fail "$2: a quote is not closed in: $3"
}

# Set ${corpus_dir} to the folder of a corpus, from the option or from db.sh; source path.sh.
find_corpus() { # <--option> <its value> <variable in db.sh> <description of the folder>
    # shellcheck source=/dev/null
    . ./db.sh
    corpus_dir=${2:-${!3:-}}
    if [ -z "${corpus_dir}" ] && grep -q "^ *$3=" db.sh; then
        fail "$3= in ${PWD}/db.sh is empty; write the folder $4 there, or give $1"
    fi
    if [ -z "${corpus_dir}" ]; then
        fail "${PWD}/db.sh has no line $3=…; write the folder $4 there, or give $1"
    fi
    # shellcheck source=/dev/null
    . ./path.sh
}

if [ -n "${pass_to:-}" ]; then
    SPEECHLLM_PID=$(hostname):$$  # the run: locks.sh
    export SPEECHLLM_PID
fi
other_options=()
_arguments=("$@")
for ((_i = 0; _i < ${#_arguments[@]}; _i++)); do
    if [ "${_arguments[_i]}" = --config ]; then
        _read_config "${_arguments[_i + 1]:-}"
    fi
done

while [ $# -gt 0 ]; do
    case $1 in
        --help | -h)
            echo "${help_message:-no help}"
            if [ -n "${pass_to:-}" ]; then
                echo
                "${pass_to}" --help
            fi
            exit 0 ;;
        --*=*) fail "'$1': options have the form --name value" ;;
        --?*)
            [ $# -ge 2 ] || fail "$1 needs a value"
            if [[ $2 =~ ^--[a-z_]+$ && ! $1 =~ [_-](args|opts)$ ]]; then
                fail "$1 needs a value; what follows is $2"
            fi
            [ "$1" = --config ] || _set_option "$1" "$2"
            shift 2 ;;
        *) fail "unexpected argument '$1'; options have the form --name value" ;;
    esac
done

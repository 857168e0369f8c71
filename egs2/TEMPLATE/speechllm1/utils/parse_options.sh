# shellcheck shell=bash
# Source this to turn `--name value` on the command line into shell variables:
#
#   nj=4
#   help_message="Usage: …"
#   . utils/parse_options.sh
#
# `--name value` sets the variable `name` (a dash reads as an underscore), which must
# have a value before; one that is true or false takes no other. `--help` prints
# ${help_message}. What follows the options stays in "$@". As in Kaldi,
# `--config FILE` sources FILE first, so that the command line wins over it.

_option_error() {
    echo "$(basename "$0"): error: $*" >&2
    exit 1
}

_set_option() { # <--name> <value>
    local name=${1#--}
    name=${name//-/_}
    if ! [[ ${name} =~ ^[a-z_][A-Za-z0-9_]*$ ]] || [ -z "${!name+set}" ] ||
        [[ ${name} == _* ]]; then
        _option_error "unknown option '$1'; --help lists the options"
    fi
    case ${!name} in
        true | false)
            case $2 in
                true | false) ;;
                *) _option_error "$1 takes true or false, not '$2'" ;;
            esac ;;
    esac
    printf -v "${name}" '%s' "$2"
}

_arguments=("$@")
for ((_i = 0; _i < ${#_arguments[@]}; _i++)); do
    if [ "${_arguments[_i]}" = --config ]; then
        _file=${_arguments[_i + 1]:-}
        [ -f "${_file}" ] || _option_error "--config: no file '${_file}'"
        # shellcheck source=/dev/null
        . "${_file}"
    fi
done

while [ $# -gt 0 ]; do
    case $1 in
        --help | -h)
            echo "${help_message:-no help}"
            exit 0 ;;
        --*=*) _option_error "'$1': options have the form --name value" ;;
        --)
            shift
            break ;;
        --?*)
            [ $# -ge 2 ] || _option_error "$1 needs a value"
            [[ ! $2 =~ ^--[a-z_]+$ ]] || _option_error "$1 needs a value; what follows is $2"
            [ "$1" = --config ] || _set_option "$1" "$2"
            shift 2 ;;
        *) break ;;
    esac
done

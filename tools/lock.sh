#!/usr/bin/env bash
# Resolve tools/requirements/*.in into hashed *.txt files, for Python 3.11 and later.
# Run it after a change of a pin. It needs the package registry and creates a temporary
# environment with uv.
set -euo pipefail

if [ $# -gt 0 ]; then
    echo "Usage: tools/lock.sh
Resolves tools/requirements/*.in into hashed *.txt files, for Python 3.11 and later; takes
no options."
    [ "$1" = --help ] || [ "$1" = -h ]
    exit
fi
cd "$(dirname "$0")/requirements"

scratch=$(mktemp -d)
trap 'rm -rf "${scratch}"' EXIT
python3 -m venv "${scratch}/venv"
"${scratch}/venv/bin/pip" install -q uv

# torch is left out: its wheel (CPU or CUDA) depends on the machine.
echo "torch ; python_version < '3'" > "${scratch}/without-torch.txt"
lock() {
    local name=$1
    shift
    "${scratch}/venv/bin/uv" pip compile -q --universal --python-version 3.11 \
        --default-index https://pypi.org/simple --no-config \
        --generate-hashes --no-annotate --custom-compile-command tools/lock.sh \
        --override "${scratch}/without-torch.txt" "$@" \
        -o "${name}.txt" "${name}.in"
    echo "tools/requirements/${name}.txt: $(grep -c == "${name}.txt") packages"
}
echo "pillow < 13" > "${scratch}/gradio.txt"  # as gradio requires, in demo.txt
lock base -c "${scratch}/gradio.txt"
lock dev -c base.txt
lock qlora -c base.txt
lock lightning -c base.txt
lock deepspeed -c base.txt
lock demo -c base.txt
lock serve -c base.txt
lock comet
lock espnet --no-deps
lock pip --no-deps --unsafe-package none

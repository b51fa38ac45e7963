#!/bin/sh
# Write locks/*.txt, with hashes, for Python 3.11 on x86-64 Linux with glibc 2.36 (Debian 12) or newer. Needs uv; versions
# that a lock has are kept, delete it to renew them.
# The versions are those of constraints.txt, but for vllm, whose own pins decide. Only PyPI is asked.
set -eu
cd "$(dirname "$0")/.."
unset UV_FIND_LINKS UV_INDEX UV_DEFAULT_INDEX UV_INDEX_URL UV_EXTRA_INDEX_URL

lock() {
    name=$1
    shift
    uv pip compile --no-config --quiet --generate-hashes --no-annotate \
        --python-version 3.11 --python-platform x86_64-manylinux_2_36 \
        --only-binary :all: --no-binary deepspeed --no-binary rouge-score \
        --custom-compile-command docker/lock.sh --output-file "locks/$name.txt" "$@"
}

lock build docker/build.in --constraints constraints.txt
lock cuda pyproject.toml --constraints constraints.txt
lock vllm pyproject.toml --extra vllm
# The CPU build of torch needs none of the CUDA libraries, and is on no index that all reach: its place is in the image.
excluded=$(mktemp)
trap 'rm -f "$excluded"' EXIT
grep -oE '^(cuda|nvidia|triton)[a-z0-9-]*' locks/cuda.txt | sort -u > "$excluded"
lock cpu pyproject.toml --constraints constraints.txt --excludes "$excluded" --no-emit-package torch

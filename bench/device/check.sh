#!/usr/bin/env bash
# What only a GPU can show, in three calls that fit a borrowed card, each with its own deadline:
#
#   bash bench/device/check.sh 1              the kernels are right, and the goals, on an H100 (240 s)
#   bash bench/device/check.sh 2              old against new, cuda against triton, a real epoch (230 s)
#   bash bench/device/check.sh 3              the goals and ISDA at ImageNet's size on an H200 (150 s)
#   bash bench/device/check.sh 1 goals ncu    only these steps of it
#   bash bench/device/check.sh --dry          all three on the CPU; no figure of it means anything
#
# OUT: where results go (build/device-results), at most 8 files; steps that are done there are skipped. PYTHON: the Python
# with a CUDA torch. OLD, NEW: packages that call 2 compares (folders with fastmix inside; NEW: this tree).
# `make device-package` before: its folder, build/device, has to travel with the working tree.
# Card settings are never touched. See docs/gpu.md.
set -u
cd "$(dirname "$0")/../.." || exit 2
exec "${PYTHON:-python3}" -u -m bench.device.steps "$@"

#!/usr/bin/env bash
# Installs what `make gpu-check` needs beside nvcc, on Debian 12: hipcc with clang 15 and AMD's headers and device
# libraries, and clang 19 for targets that hipcc 5.2 does not know; then the programs that are named, from packages of
# that name. Does nothing where they are installed.
set -euo pipefail

if ! command -v nvcc > /dev/null; then
  echo "gpu-check needs nvcc of the CUDA toolkit, 12 or later, on the path" >&2
  exit 1
fi

missing() { for program in "$@"; do command -v "$program" > /dev/null || return 0; done; return 1; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

packages=()
if missing hipcc clang-offload-bundler-15 llvm-readelf-15 llvm-objdump-15; then
  packages+=(hipcc libamdhip64-dev rocm-device-libs)
fi
if missing clang++-19 lld-19 clang-offload-bundler-19 llvm-readelf-19 llvm-objdump-19; then
  packages+=(clang-19 lld-19 clang-tools-19 llvm-19)
fi
for program in "$@"; do
  if missing "$program"; then packages+=("$program"); fi
done
if [ ${#packages[@]} -gt 0 ]; then
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" > /dev/null
fi

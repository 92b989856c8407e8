#!/usr/bin/env bash
# Installs what `make gpu-check` needs beside nvcc, on Debian 12: hipcc with AMD's headers and device libraries, and
# clang 19 for targets that hipcc 5.2 does not know. Does nothing where they are installed.
set -euo pipefail

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

packages=()
command -v hipcc > /dev/null || packages+=(hipcc libamdhip64-dev rocm-device-libs)
command -v clang++-19 > /dev/null || packages+=(clang-19 lld-19 clang-tools-19 llvm-19)
if [ ${#packages[@]} -gt 0 ]; then
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" > /dev/null
fi

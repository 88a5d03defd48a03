#!/usr/bin/env bash
# Creates .venv and installs sparsec in it with pinned dependencies: setup.sh run | dev. Quick where that is done already.
# PYTHON names the interpreter, CONSTRAINTS (cpu or cuda) overrides what is found, TORCH asks for one version of torch.
set -euo pipefail
cd "$(dirname "$0")/.."
extras=${1:-run}
venv=.venv
stamp=$venv/installed-$extras

say() { echo "setup: $*" >&2; }

find_python() {
  local name
  for name in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  say "no Python 3.11 or newer found; name one with make PYTHON=/path/to/python3"
  return 1
}

constraints_for_this_machine() {
  if nvidia-smi -L >/dev/null 2>&1 || [ -e /proc/driver/nvidia/version ]; then echo cuda; else echo cpu; fi
}

pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

create_venv() {
  if "$venv/bin/python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then return; fi
  local python
  python=$(find_python)
  say "creating $venv with $("$python" --version)"
  "$python" -m venv --clear "$venv" || {
    say "creating the virtual environment failed; on Debian and Ubuntu, install python3-venv"
    return 1
  }
}

# torch's CUDA builds pin their own Triton, so cpu.txt resolves only where pip finds a CPU build.
fall_back_without_cpu_build() {
  local output
  if [ "$set" = cpu ] && ! output=$(pip install --dry-run -c constraints/cpu.txt torch triton 2>&1) &&
    grep -q 'conflicting dependencies' <<<"$output"; then
    say "pip finds no CPU build of the pinned torch; taking constraints/cuda.txt instead (several GB)"
    set=cuda
  fi
}

install() {
  local project=.
  [ "$extras" = run ] || project=".[$extras]"
  rm -rf "$venv"/installed-* build
  create_venv
  pip install --quiet -c constraints/common.txt pip setuptools
  [ -n "${CONSTRAINTS:-}" ] || fall_back_without_cpu_build
  say "installing with constraints/$set.txt; the first time takes some minutes"
  # setuptools warns that ./sparsec may shadow the installed package; through the links both are the same files
  PYTHONWARNINGS=ignore pip install --quiet --no-build-isolation -c "constraints/$set.txt" ${TORCH:+"torch==$TORCH"} -e "$project"
}

set=${CONSTRAINTS:-$(constraints_for_this_machine)}
wanted="$PWD $set ${TORCH:-} $(cat pyproject.toml constraints/*.txt scripts/setup.sh | sha256sum)"
if [ ! -x "$venv/bin/python" ] || [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  install
  echo "$wanted" >"$venv/installed-run"
  echo "$wanted" >"$stamp"
  say "done"
fi

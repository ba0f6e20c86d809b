#!/usr/bin/env bash
# Golden files from this machine's GPU: run.sh FOLDER, in the checkout. With a build of dsa_ext the ops' as well.
set -euo pipefail
folder=$(realpath -m "$1")
cd "$(dirname "$0")/../../.."
python=${PYTHON:-python3}
if ! "$python" -c 'import numpy'; then "$python" -m pip install --quiet numpy; fi
if "$python" -c 'import dsa_ext'; then
  "$python" -m tests.emulator.golden --write "$folder"
else
  echo "without dsa_ext: instructions alone" >&2
  "$python" -m tests.emulator.golden --write "$folder" --instructions
fi

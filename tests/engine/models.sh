#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# models.sh: the engine's logits against those of transformers, for every architecture; and the shipped
# pair. BUILD: where `make tests` has put engine/logits.
set -u
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
build=${BUILD:-$root/build/release}
python=$root/build/venv/test/bin/python
[ -x "$python" ] || { echo "not ok models: run tests/setup.sh test first"; exit 1; }
export PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1

"$python" "$here/transformers.py" "$build/engine/logits" || exit 1
"$python" "$here/transformers.py" "$build/engine/logits" "$root"/tests/data/nano-llama2/{base,kjv}

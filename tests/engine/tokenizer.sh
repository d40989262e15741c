#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# tokenizer.sh: the tokenizer against the `tokenizers` package. BUILD: where `make tests` has put
# engine/tokens.
set -u
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
build=${BUILD:-$root/build/release}
python=$root/build/venv/test/bin/python
[ -x "$python" ] || { echo "not ok tokenizer: run tests/setup.sh test first"; exit 1; }
export PYTHONDONTWRITEBYTECODE=1

"$python" "$here/tokenizer.py" "$build/engine/tokens"

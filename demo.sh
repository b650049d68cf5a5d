#!/bin/sh
# Sets everything up in .venv beside this file, fetches a model with real weights and a photo, and draws heatmap.png.
set -eu
cd "$(dirname "$0")"
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "$python is older than Python 3.11; name another one: PYTHON=python3.11 ./demo.sh" >&2
    exit 1
}
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[cpu,report,test]"
.venv/bin/python models/fetch_demo.py
.venv/bin/xaicompile models/efficientnet-lite0.onnx --rule lrp-gamma --mean 127 --std 128 --size 256,224 \
    -o efficientnet-lite0.explained.onnx
.venv/bin/xaicompile explain efficientnet-lite0.explained.onnx models/chelsea.png -o heatmap.png

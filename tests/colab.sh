#!/usr/bin/env bash
# make colab: builds Google Colab's environment (Python 3.13 and tests/colab.txt), installs the library there with all that
# the lessons' first cells ask for, fails if that moved a package which was there before, and plays every lesson in it.
# ARGS=02_index plays the lessons with that in their name.
set -euo pipefail
cd "$(dirname "$0")/.."
env=.venv-colab

if [ ! -f $env/before.txt ] || [ tests/colab.txt -nt $env/before.txt ]; then
    for python in python3.13 "$HOME"/.pyenv/versions/3.13*/bin/python ""; do
        "$python" --version >/dev/null 2>&1 && break
    done
    [ -n "$python" ] || { echo "No Python 3.13 found, which is what Colab has: install it"; exit 1; }
    echo "Building Colab's environment in $env (once; some minutes) ..."
    rm -rf $env
    "$python" -m venv $env
    $env/bin/python -m pip install --quiet pip==24.1.2 -r tests/colab.txt
    $env/bin/python -m pip freeze > $env/before.part
    mv $env/before.part $env/before.txt
fi

extras=$(grep -ho 'search_sdo\[[a-z,]*\]' module*/*.ipynb | sed 's/.*\[//; s/\]//' | tr ',' '\n' | sort -u | paste -sd,)
echo "Installing the library with what the lessons ask for: $extras"
$env/bin/python -m pip install --quiet --editable ".[$extras]"
$env/bin/python -m pip freeze > $env/after.txt
if moved=$(grep -vxFf $env/after.txt $env/before.txt); then
    echo "Installing the library moved packages that Colab has:"; echo "$moved"; exit 1
fi
echo "$(wc -l < $env/before.txt) packages were there, none moved, $(($(wc -l < $env/after.txt) - $(wc -l < $env/before.txt))) came"

OMP_NUM_THREADS=2 $env/bin/python -m search_sdo.course.learners "$@"

#!/usr/bin/env bash
# What the image is made of, on Debian 12: its Python, with the packages of requirements.txt but the project itself; a
# compiler, by which Triton and torch.compile make kernels; and ip, by which slurm/node.sh finds the network interface.
# Called by Dockerfile and sst2.def, within the image. Not to be called by hand.
#
#   install.sh FILE     # requirements.txt, with requirements.lock beside it
set -euo pipefail

export DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1
apt-get update
apt-get install --yes --no-install-recommends ca-certificates gcc iproute2 libc6-dev python3-dev python3-venv
rm -rf /var/lib/apt/lists/*
python3 -m venv /opt/sst2/venv
grep -v '^-e ' "$1" > /opt/sst2/packages.txt # -e . is the project
/opt/sst2/venv/bin/pip install -r /opt/sst2/packages.txt

# syntax=docker/dockerfile:1
# The image of every node, head and workers, with or without GPUs, and of the pods that submit.
#
#   docker build --tag feral:0.1.0 .
#
# It is large, for PyTorch brings its CUDA libraries; of a GPU node it needs the driver alone.

FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/venv
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY ssl_models ssl_models
COPY pipeline pipeline
COPY jobs jobs
RUN /opt/venv/bin/python -m pip install --constraint constraints.txt ".[mlflow,postgres]" \
    && /opt/venv/bin/python -m pip uninstall --yes pip

FROM python:3.11-slim-bookworm
# KubeRay asks with wget whether a node is alive. Not pinned, for Debian's security updates:
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home --shell /bin/bash feral
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
WORKDIR /home/feral
CMD ["feral", "--help"]

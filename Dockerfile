# An image of the command maskdepth, with the engine FFCV, and DALI where BASE has CUDA.
# docs/guide.md has the commands. BASE: Debian 12 or Ubuntu 24.04, or nvidia/cuda on one of them.
ARG BASE=debian:bookworm-slim

# hadolint ignore=DL3006
FROM ${BASE} AS build
# Options of every `pip install`, such as another package index.
ARG PIP_ARGS=
ENV PIP_NO_CACHE_DIR=1 PATH=/opt/maskdepth/bin:$PATH
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]

# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        g++ libopencv-dev libturbojpeg0-dev pkg-config python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

COPY . /source
WORKDIR /source
# Images of nvidia/cuda set CUDA_VERSION. The torch of constraints.txt is built for CUDA 13.
# hadolint ignore=SC2086
RUN cuda=${CUDA_VERSION:-} && cuda=${cuda%%.*} \
    && case $cuda in \
        "") extras=ffcv-needs ;; \
        12) extras=ffcv-needs,dali-cu12 && sed -i '/^torch==/d' constraints.txt ;; \
        13) extras=ffcv-needs,dali-cu13 ;; \
        *) echo "found CUDA $cuda in the base, expected 12, 13 or none" >&2 && exit 1 ;; \
    esac \
    && python3 -m venv /opt/maskdepth \
    && pip install $PIP_ARGS -c constraints.txt setuptools wheel \
    && pip wheel --no-deps --no-build-isolation -w dist . \
    && pip install $PIP_ARGS -c constraints.txt "$(echo dist/*.whl)[$extras]" \
    && pip install $PIP_ARGS -c constraints.txt --no-deps --no-build-isolation ffcv \
    && python -c 'import ffcv, maskdepth.loaders'
# The packages of the libraries that FFCV is linked to have other names in each distribution.
RUN ldd /opt/maskdepth/lib/python3*/site-packages/ffcv/_libffcv*.so \
    | awk '$3 ~ "^/" {print $3}' | xargs realpath \
    | { xargs dpkg-query -S 2>/dev/null || true; } | cut -d: -f1 | sort -u >/opt/maskdepth/packages \
    && grep -q opencv /opt/maskdepth/packages

# hadolint ignore=DL3006
FROM ${BASE}
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
COPY --from=build /opt/maskdepth /opt/maskdepth
# On a GPU, torch.compile needs a compiler and the headers of Python.
# hadolint ignore=DL3008,SC2046
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        python3 ${CUDA_VERSION:+g++ python3-dev} $(cat /opt/maskdepth/packages) \
    && rm -rf /var/lib/apt/lists/*
# A volume takes the owner that its folder has here; any user may write to the caches.
RUN useradd --create-home --uid 10001 maskdepth \
    && install -d -o maskdepth -g maskdepth /data /shards /runs \
    && install -d -m 1777 /var/cache/maskdepth
ENV PATH=/opt/maskdepth/bin:$PATH \
    NUMBA_CACHE_DIR=/var/cache/maskdepth/numba \
    TRITON_CACHE_DIR=/var/cache/maskdepth/triton \
    TORCHINDUCTOR_CACHE_DIR=/var/cache/maskdepth/inductor \
    MPLCONFIGDIR=/var/cache/maskdepth/matplotlib
USER 10001
WORKDIR /home/maskdepth
ENTRYPOINT ["maskdepth"]
CMD ["--help"]

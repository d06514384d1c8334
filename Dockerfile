# Tetrad: completes brain tumour MRI exams.
#   docker build -t tetrad .                            for CUDA GPUs; runs without one as well
#   docker build -t tetrad:cpu --build-arg VARIANT=cpu . smaller, for processors only
FROM python:3.11-slim-bookworm

ARG VARIANT=gpu
# Where the processor-only torch comes from; empty where pip is already set up to find one.
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
# Two networks that find the brain in heads with skull (17 MB), without what their package needs; empty leaves them out.
ARG DEEPBET=1.0.2
# Anything but an empty text adds Ray (240 MB): several devices, and many machines (docs/cluster.md).
ARG CLUSTER=
# Sends and receives DICOM (`clinic --send`, `dicom-node`); empty leaves it out.
ARG PYNETDICOM=3.0.4
ARG VERSION=0.1.0

LABEL org.opencontainers.image.title="tetrad" \
      org.opencontainers.image.description="Synthesises the missing sequence of a brain tumour MRI exam" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"

# The first five are for whoever runs Python here by other ways than the entrypoint, which isolates it.
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONNOUSERSITE=1 \
    PYTHONPATH=/opt/tetrad \
    ORT_DISABLE_TELEMETRY=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /opt/tetrad

# Packages before code: they are the large layer, and change rarely. The two secrets are optional (pip behind a proxy).
COPY requirements.txt requirements-cluster.txt ./
RUN --mount=type=secret,id=pipconf,target=/run/secrets/pip.conf,required=false \
    --mount=type=secret,id=cabundle,target=/run/secrets/ca.crt,required=false \
    if [ -f /run/secrets/pip.conf ]; then export PIP_CONFIG_FILE=/run/secrets/pip.conf; fi; \
    if [ -f /run/secrets/ca.crt ]; then export PIP_CERT=/run/secrets/ca.crt; fi; \
    if [ "$VARIANT" = cpu ]; then \
        sed -i 's/^onnxruntime-gpu\[cuda,cudnn\]/onnxruntime/' requirements.txt \
        && grep '^torch==' requirements.txt >/tmp/torch.txt \
        && pip install --no-cache-dir ${TORCH_CPU_INDEX:+--extra-index-url "$TORCH_CPU_INDEX"} -r /tmp/torch.txt \
        && rm /tmp/torch.txt; \
    fi \
    && pip install --no-cache-dir -r requirements.txt \
    && if [ -n "$DEEPBET" ]; then pip install --no-cache-dir --no-deps "deepbet==$DEEPBET"; fi \
    && if [ -n "$CLUSTER" ]; then pip install --no-cache-dir "$(grep '^ray==' requirements-cluster.txt)"; fi \
    && if [ -n "$PYNETDICOM" ]; then pip install --no-cache-dir "pynetdicom==$PYNETDICOM"; fi

COPY LICENSE entrypoint.sh ./
COPY weights ./weights
COPY app ./app
# Any user may run it, whatever umask it was built under.
RUN chmod -R a+rX /opt/tetrad && chmod a+x entrypoint.sh

# No USER: the folder mounted as /output belongs to whoever starts the container, and only root or `--user` may write there.
ENTRYPOINT ["/opt/tetrad/entrypoint.sh"]

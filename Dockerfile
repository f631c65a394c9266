# not built: no container builder ran where this file was written. tests/test_images.py runs its install step in a new
# environment, and starts the service there with the variables below.
#
#     docker build --tag mosa-deploy:0.1.0 .
#     docker run --read-only --tmpfs /tmp --volume "$PWD/artifacts:/store:ro" --publish 3000:3000 mosa-deploy:0.1.0

# The Python that the tests run on. Debian's glibc is the one that the wheels need.
FROM python:3.11-slim-bookworm AS build
WORKDIR /source
COPY LICENSE README.md CHANGELOG.md MANIFEST.in constraints.txt pyproject.toml ./
COPY mosa_deploy mosa_deploy
COPY training training
COPY export export
COPY serving serving
# The environment has no pip of its own: the image's pip fills it.
RUN python -m venv --without-pip /opt/mosa \
    && python -m pip --python /opt/mosa/bin/python install --no-cache-dir --only-binary=:all: \
        --constraint constraints.txt '.[serve-cpu,s3,heif,otel]'

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="mosa-deploy" \
      org.opencontainers.image.description="Hundreds of vision tasks on one backbone, served on CPUs" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
# Nothing is installed later, so nothing that installs stays.
RUN python -m pip uninstall --yes --root-user-action=ignore wheel setuptools pip \
    && useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin mosa
COPY --from=build /opt/mosa /opt/mosa
# All that is written goes to /tmp: give it a file system in memory, or a volume, and the root may be read-only.
ENV PATH=/opt/mosa/bin:$PATH \
    HOME=/tmp \
    TMPDIR=/tmp \
    BENTOML_HOME=/tmp/bentoml \
    BENTOML_DO_NOT_TRACK=True \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MOSA_ARTIFACTS=/store
USER 10001:10001
EXPOSE 3000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:3000/livez', timeout=4)"]
ENTRYPOINT ["mosa", "serve"]

# The service as an image. docs/deploy.md says how to run it.
ARG PYTHON=docker.io/library/python:3.13-slim

# The packages come as wheels, with hashes, so neither stage needs a compiler.
FROM ${PYTHON} AS build
WORKDIR /build
RUN python -m venv --without-pip /opt/cohort-receiver
COPY requirements/service.in requirements/service.txt requirements/
RUN python -m pip --python /opt/cohort-receiver install --no-cache-dir --no-compile \
    --only-binary :all: --require-hashes --requirement requirements/service.txt
COPY pyproject.toml setup.cfg README.md LICENSE ./
COPY docs docs
COPY app app
RUN python -m pip --python /opt/cohort-receiver install --no-cache-dir --no-compile --no-deps . \
    && python -m compileall -q --invalidation-mode unchecked-hash /opt/cohort-receiver

FROM ${PYTHON}
# The base has no bytecode of Python's own modules, and nothing can be written later: each worker
# would compile them, which takes a second and 8 MB. Hashes, as builders may round files' times.
RUN python -m compileall -q --invalidation-mode unchecked-hash -x site-packages \
    "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
COPY --from=build /opt/cohort-receiver /opt/cohort-receiver
ENV PATH=/opt/cohort-receiver/bin:$PATH PYTHONUNBUFFERED=1 PORT=8000
USER 65532:65532
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD ["python", "-c", \
    "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/healthz', timeout=4)"]
CMD ["cohort-receiver", "serve"]

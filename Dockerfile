# Not built or run yet: the development machine has no container engine.
#
#   docker build -t pneumolib .
#   docker run --name demo pneumolib && docker cp demo:/pneumolib/reports/demo .
#   docker run --name kermany -v /where/it/is/chest_xray:/images:ro pneumolib make report STUDY=kermany DATA=/images
#
# Build from a clone: `.git` is copied, so result.json names the commit. Without `.git` it names none, unless `docker run`
# gets `-e PNEUMOLIB_COMMIT=<commit>`.
FROM python:3.11-slim AS base
RUN apt-get update && apt-get install -y --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home researcher && install -d -o researcher -g researcher /pneumolib
USER researcher

FROM base
WORKDIR /pneumolib
COPY --chown=researcher:researcher . .
# `.venv` from requirements.lock, as on any machine
RUN make install
CMD ["make", "report"]

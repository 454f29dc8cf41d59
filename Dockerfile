# SPDX-License-Identifier: Apache-2.0
#
# Two images from one file:
#   docker build --target cpu  -t openmoed:cpu  .
#   docker build --target cuda -t openmoed:cuda .
# Each builds in a stage with compilers and ships a stage with shared libraries alone. The model folder is
# mounted or baked in by whoever deploys; the demo model is inside.
#
# In a container the daemon listens on every address, which it does for those with a key alone:
#   docker run -p 8000:8000 -e OPENMOED_API_KEY openmoed:cpu
#   docker run -p 127.0.0.1:8000:8000 -e OPENMOED_INSECURE_NO_AUTH=on openmoed:cpu    # everyone on this machine

FROM debian:12 AS build-cpu
WORKDIR /src
COPY deploy/packages.txt deploy/packages.sh deploy/
RUN deploy/packages.sh build
COPY . .
RUN make -j"$(nproc)" cpu && make install DESTDIR=/out

FROM debian:12-slim AS cpu
COPY deploy/packages.txt deploy/packages.sh /tmp/deploy/
RUN /tmp/deploy/packages.sh run && rm -rf /tmp/deploy /var/lib/apt/lists/*
COPY --from=build-cpu /out/usr/local /usr/local
RUN useradd --system --no-create-home openmoed
USER openmoed
EXPOSE 8000
ENV OPENMOED_HOST=0.0.0.0 OPENMOED_MODEL=/usr/local/share/openmoed/demo-model
ENTRYPOINT ["openmoed"]

FROM nvidia/cuda:13.0.0-devel-ubuntu24.04 AS build-cuda
WORKDIR /src
COPY deploy/packages.txt deploy/packages.sh deploy/
RUN deploy/packages.sh build
COPY . .
RUN make -j"$(nproc)" all && make install DESTDIR=/out

FROM nvidia/cuda:13.0.0-runtime-ubuntu24.04 AS cuda
COPY deploy/packages.txt deploy/packages.sh /tmp/deploy/
RUN /tmp/deploy/packages.sh run-ubuntu && rm -rf /tmp/deploy /var/lib/apt/lists/*
COPY --from=build-cuda /out/usr/local /usr/local
RUN useradd --system --no-create-home openmoed
USER openmoed
EXPOSE 8000
ENV OPENMOED_HOST=0.0.0.0 OPENMOED_MODEL=/usr/local/share/openmoed/demo-model
ENTRYPOINT ["openmoed"]

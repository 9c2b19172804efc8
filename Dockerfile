# The service alone; compose.yaml has the rest. Built with BuildKit.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# The target directory is a cache and no part of the image, so the program is copied out of it.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --profile dist --locked --bin firstcome \
    && install -m 755 target/dist/firstcome /firstcome

FROM debian:bookworm-slim
# For TLS to payment gateways, Redis and PostgreSQL.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin firstcome
COPY --from=build /firstcome /usr/local/bin/firstcome
USER firstcome
EXPOSE 8080
# Drains: what was begun is answered.
STOPSIGNAL SIGTERM
ENTRYPOINT ["firstcome"]
CMD ["serve"]

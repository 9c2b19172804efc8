# The image of the service; compose.yaml adds Redis and PostgreSQL.
FROM rust:1.95-bookworm AS build
WORKDIR /src
# The dependencies are a separate layer, built from the manifests and placeholders: Docker rebuilds it only when the manifests
# change.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src tests/integration tests/concurrency benches/bench \
    && echo 'fn main() {}' | tee src/main.rs tests/integration/main.rs tests/concurrency/main.rs > benches/bench/main.rs \
    && touch src/lib.rs \
    && cargo build --profile dist --locked --bin firstcome
COPY src src
COPY lua lua
COPY migrations migrations
# Makes the sources newer than the build of the placeholders, whatever their times.
RUN touch src/main.rs src/lib.rs && cargo build --profile dist --locked --bin firstcome

# glibc, certificate authorities (for TLS to payment gateways, Redis and PostgreSQL), and an unprivileged user. No shell.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/dist/firstcome /usr/local/bin/firstcome
# By number, so that an orchestrator can verify that it is not root.
USER 65532:65532
# The program writes no file: the root file system may be read-only.
ENV BIND_ADDR=0.0.0.0:8080
EXPOSE 8080
# The program drains on SIGTERM: see docs/running.md, "A stop".
STOPSIGNAL SIGTERM
# Health checks run `firstcome health` or request /readyz. The image has none, since `project` and `migrate` serve no API.
ENTRYPOINT ["firstcome"]
CMD ["serve"]
